"""Draft trees beside other requests: what a CUDA graph would need of masks, and what a tree costs."""

from pathlib import Path
from typing import Any

import pytest

from spec_worker.trees import Trees
from tests.engines import engine, random_prompts
from tests.spec_worker.batches import Ask, together, tokens, watched
from tests.spec_worker.conftest import VOCAB, ar_tokens, linear
from vllm_nld.reference import ReferenceModel

BLOCK, NODES = 8, 40
PROMPTS = random_prompts(8, VOCAB, longest=40, seed=61)
ASKED: list[dict[str, Any]] = [
    {},
    {"nld_mode": "ar"},
    {"nld_tree_nodes": 0},
    {"nld_tree_nodes": 9, "nld_block_length": 4},
]


@pytest.mark.parametrize("every", [False, True], ids=["trees only", "every request"])
def test_masks_for_every_request_change_nothing(
    every: bool, agreeable_checkpoint: Path, reference: ReferenceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CUDA graph has a mask for each of its requests: a causal one for those without a tree."""
    mask, seen = Trees.mask, []

    def counted(self: Trees, batch: Any, _: bool) -> Any:
        found = mask(self, batch, every)
        seen.append((0 if found is None else len(found.requests), batch.num_reqs))
        return found

    monkeypatch.setattr(Trees, "mask", counted)
    asks = [Ask(prompt, ASKED[index % len(ASKED)]) for index, prompt in enumerate(PROMPTS)]
    with engine(agreeable_checkpoint, **linear(BLOCK, tree_nodes=NODES)) as llm:
        found = tokens(together(llm, asks))
    assert found == ar_tokens(reference, PROMPTS, 20)
    assert all(masked == requests for masked, requests in seen) if every else any(0 < m < r for m, r in seen)


def test_a_tree_takes_one_draft_pass_and_a_row_per_node(agreeable_checkpoint: Path) -> None:
    with engine(agreeable_checkpoint, **linear(BLOCK, tree_nodes=NODES)) as llm, watched(llm) as steps:
        together(llm, [Ask(PROMPTS[3], {"nld_tree_nodes": 30, "nld_block_length": 5})])
    rounds = [step for step in steps[1:] if step.scheduled != [1]]
    assert len(rounds) > 3
    assert all(step.scheduled == [31] for step in rounds)
    assert all(step.passes in ([5], []) for step in rounds), "of the block's rows; none after the last token"
