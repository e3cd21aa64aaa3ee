"""A new mode takes one record: the edge, the scheduler, the worker, the samplers and the metrics read it there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines import random_prompts
from tests.metrics.conftest import Counted, counting
from tests.spec_worker.batches import BLOCK, Ask, alone, together, tokens
from tests.spec_worker.conftest import VOCAB, linear
from vllm_nld.reference import ReferenceModel, generate
from vllm_nld.serving.aliases import with_alias
from vllm_nld.serving.modes import MODES, SHIFTS, Drafting, Mode

PROMPTS = random_prompts(6, VOCAB, longest=100, seed=21)
PLAIN = Mode(
    "plain",
    "as linear, but drafts without the draft adapter",
    fields=("nld_block_length",),
    drafting=Drafting("draft", adapter=False, sampling="draft"),
)
SPRINT = Mode(
    "sprint",
    "as diffusion, but denoises with the draft adapter",
    fields=("nld_block_length", "nld_threshold"),
    drafting=Drafting("denoise", adapter=True, sampling="final"),
    accept="take",
    refused=SHIFTS,
)


@pytest.fixture(scope="module")
def counted(agreeable_checkpoint: Path) -> Iterator[Counted]:
    """An engine that was started with two more records in the table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODES, PLAIN.name, PLAIN)
        patch.setitem(MODES, SPRINT.name, SPRINT)
        with counting(agreeable_checkpoint, **linear(BLOCK, groups=2)) as counted:
            yield counted


def asks(mode: str, **more: Any) -> list[Ask]:
    return [Ask(prompt, {"nld_mode": mode, **more}) for prompt in PROMPTS]


def rounds(model: ReferenceModel) -> int:
    """Verify steps that the reference takes for all prompts."""
    options: dict[str, Any] = {"mode": "linear", "block_length": BLOCK, "max_new_tokens": 20, "ignore_eos": True}
    return sum(len(generate(model, prompt, **options).rounds) for prompt in PROMPTS)


def test_a_mode_that_verifies(counted: Counted, agreeable_checkpoint: Path, reference: ReferenceModel) -> None:
    """Lossless, without the adapter, beside every other mode, and counted under its own name."""
    without = ReferenceModel.from_pretrained(agreeable_checkpoint, adapter=False)
    assert rounds(without) != rounds(reference), "the adapter must matter, or this test shows nothing"
    before = Counted(counted.llm)
    found = tokens(together(counted.llm, [ask for mode in MODES for ask in asks(mode)]))
    exact = [ask.rounds(reference).tokens for ask in asks("ar")]
    names = list(MODES)
    for name in ("ar", "linear", "quadratic", "plain"):
        first = names.index(name) * len(PROMPTS)
        assert found[first : first + len(PROMPTS)] == exact, name
    assert before("nld:drafts_total", mode="plain") == rounds(without)
    assert before("nld:forwards_total", mode="plain", kind="draft") == rounds(without)
    assert before("nld:output_tokens_total", mode="plain") == 20 * len(PROMPTS)
    assert before("nld:acceptance_length_count", mode="plain") == rounds(without)


def test_a_mode_that_takes_blocks(counted: Counted) -> None:
    """Its blocks are whole whatever is beside them, nothing of it is verified, and the adapter is on."""
    before = Counted(counted.llm)
    mine = asks("sprint", nld_threshold=0.5)
    exact = tokens(alone(counted.llm, mine))
    assert exact != tokens(alone(counted.llm, asks("diffusion", nld_threshold=0.5))), "the adapter changes blocks"
    assert tokens(together(counted.llm, mine + asks("linear") + asks("plain")))[: len(PROMPTS)] == exact
    assert before("nld:denoising_passes_count", mode="sprint") == before("nld:blocks_committed_total", mode="sprint")
    assert before("nld:denoising_passes_count", mode="sprint") > 0
    assert before("nld:forwards_total", mode="sprint", kind="denoise") > 0


def test_its_fields_and_its_name_are_known(counted: Counted) -> None:
    assert with_alias("nld:sprint", None) == {"nld_mode": "sprint"}
    with pytest.raises(ValueError, match="nld_threshold has no use in mode 'plain', only in diffusion and sprint"):
        together(counted.llm, asks("plain", nld_threshold=0.5)[:1])
    with pytest.raises(ValueError, match="presence_penalty has no effect in mode 'sprint'"):
        together(counted.llm, [Ask(PROMPTS[0], {"nld_mode": "sprint"}, sampling={"presence_penalty": 1.0})])


def test_a_record_that_contradicts_itself_is_refused() -> None:
    draft, final = Drafting("draft", True, "draft"), Drafting("denoise", False, "final")
    for options, message in (
        ({"fields": ("nld_speed",)}, "unknown request fields: nld_speed"),
        ({"fields": ("nld_threshold",)}, "drafts nothing"),
        ({"drafting": draft, "accept": "take"}, "drafts are final exactly if"),
        ({"drafting": final}, "drafts are final exactly if"),
        ({"grouped": True}, "groups of masks need verified blocks"),
        ({"drafting": final, "accept": "take", "grouped": True}, "groups of masks need verified blocks"),
    ):
        with pytest.raises(ValueError, match=message):
            Mode("odd", "", **options)  # type: ignore[arg-type]
