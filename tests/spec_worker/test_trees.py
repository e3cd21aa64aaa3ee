"""Draft trees beside other requests: what a CUDA graph would need of masks, and what a tree costs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.v1.worker.gpu.cudagraph_utils import prepare_inputs_to_capture

from attention_backend.rows import attached, unpack
from spec_worker.trees import Trees
from tests.engines import engine, random_prompts
from tests.spec_worker.batches import Ask, together, tokens, watched
from tests.spec_worker.conftest import VOCAB, ar_tokens, linear
from tests.spec_worker.leaks import parts
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

    def counted(self: Trees, batch: Any, groups: Any, **_: bool) -> Any:
        found = mask(self, batch, groups, every)
        seen.append((0 if found is None else len(found.requests), batch.num_reqs))
        return found

    monkeypatch.setattr(Trees, "mask", counted)
    asks = [Ask(prompt, ASKED[index % len(ASKED)]) for index, prompt in enumerate(PROMPTS)]
    with engine(agreeable_checkpoint, **linear(BLOCK, tree_nodes=NODES)) as llm:
        found = tokens(together(llm, asks))
    assert found == ar_tokens(reference, PROMPTS, 20)
    assert all(masked == requests for masked, requests in seen) if every else any(0 < m < r for m, r in seen)


@pytest.mark.parametrize("nodes", [0, NODES], ids=["chains", "trees"])
@pytest.mark.parametrize("full", [False, True], ids=["pieces", "full"])
def test_full_graphs_are_captured_with_masks_if_the_server_has_trees(
    nodes: int, full: bool, agreeable_checkpoint: Path
) -> None:
    """Through vLLM's own preparation of a capture. In pieces attention is no part of a graph."""
    with engine(agreeable_checkpoint, **linear(BLOCK, tree_nodes=nodes)) as llm:
        runner = parts(llm)[2]
        rows = runner.decode_query_len
        state = prepare_inputs_to_capture(
            3,
            3 * rows,
            runner.model_state,
            runner.input_buffers,
            runner.block_tables,
            runner.attn_groups,
            runner.kv_cache_config,
            full_cudagraph=full,
            max_query_len=rows,
        )
        masks = [attached(metadata) for metadata in state.attn_metadata.values()]
        if not (nodes and full):
            assert masks == [None] * len(masks)
            return
        for mask in masks:
            assert mask is not None and mask.requests.tolist() == [0, 1, 2]
            assert mask.bits is runner.model_state.trees.bits, "a buffer that every replay overwrites"
            causal = torch.ones(rows, rows, dtype=torch.bool).tril()
            assert unpack(mask.bits[: 3 * rows], rows).unflatten(0, (3, rows)).equal(causal.expand(3, -1, -1))


def test_a_tree_takes_one_draft_pass_and_a_row_per_node(agreeable_checkpoint: Path) -> None:
    with engine(agreeable_checkpoint, **linear(BLOCK, tree_nodes=NODES)) as llm, watched(llm) as steps:
        together(llm, [Ask(PROMPTS[3], {"nld_tree_nodes": 30, "nld_block_length": 5})])
    rounds = [step for step in steps[1:] if step.scheduled != [1]]
    assert len(rounds) > 3
    assert all(step.scheduled == [31] for step in rounds)
    assert all(step.passes in ([5], []) for step in rounds), "of the block's rows; none after the last token"
