"""vLLM's schedule of drafts by batch size: obeyed by linear mode to the row, and no matter to a diffusion block."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines import engine, random_prompts
from tests.spec_worker.batches import BLOCK, Ask, alone, together, tokens, watched
from tests.spec_worker.conftest import VOCAB, allow_async, linear
from vllm_nld.reference import ReferenceModel

PROMPTS = random_prompts(6, VOCAB, longest=100, seed=13)
DIFFUSION = {"nld_mode": "diffusion", "nld_threshold": 0.5}
SCHEDULES: dict[str, list[list[int]]] = {
    "none in a batch": [[1, 1, BLOCK - 1], [2, 16, 0]],
    "three in a batch": [[1, 1, BLOCK - 1], [2, 16, 3]],
}


@pytest.fixture(scope="module", params=[(name, way) for name in SCHEDULES for way in ("sync", "async")], ids=", ".join)
def served(request: pytest.FixtureRequest, agreeable_checkpoint: Path) -> Iterator[tuple[Any, int]]:
    """An engine, and the number of drafts in a batch of two or more."""
    name, asynchronous = request.param[0], request.param[1] == "async"
    speculative = {"method": "draft_model", "model": str(agreeable_checkpoint), "num_speculative_tokens": BLOCK - 1}
    speculative["num_speculative_tokens_per_batch_size"] = SCHEDULES[name]
    with pytest.MonkeyPatch.context() as patch:
        if asynchronous:
            allow_async(patch)
        with engine(agreeable_checkpoint, **linear(BLOCK), speculative_config=speculative) as llm:
            assert llm.llm_engine.vllm_config.scheduler_config.async_scheduling == asynchronous
            yield llm, SCHEDULES[name][1][2]


def test_linear_requests_draft_as_many_rows_as_scheduled(served: tuple[Any, int], reference: ReferenceModel) -> None:
    """Four requests that end one by one, so that the last is alone."""
    llm, drafts = served
    asks = [Ask(prompt, {}, sampling={"max_tokens": 10 + 10 * i}) for i, prompt in enumerate(PROMPTS[:4])]
    with watched(llm) as steps:
        found = tokens(together(llm, asks))
    assert found == [
        Ask(ask.prompt, {"nld_mode": "ar"}, sampling=ask.sampling).rounds(reference).tokens for ask in asks
    ]
    batched = [step for step in steps if step.size > 1]
    assert len(batched) > 5 and any(step.size == 1 for step in steps)
    for step in batched:
        assert all(rows <= step.size * (drafts + 1) for rows in step.passes), "rows that no step will verify"
        assert drafts or not step.passes, "a pass whose drafts no step will verify"
    assert any(step.passes for step in batched) == (drafts > 0)
    assert max(rows for step in steps if step.size == 1 for rows in step.passes) == BLOCK, (
        "alone it drafts whole blocks"
    )


@pytest.mark.parametrize("beside", [None, {"nld_mode": "linear"}, {"nld_mode": "ar"}], ids=["only", "linear", "ar"])
def test_a_diffusion_answer_does_not_depend_on_the_load(
    beside: dict[str, Any] | None, served: tuple[Any, int], reference: ReferenceModel
) -> None:
    """A block is denoised whole, whatever a batch's other requests draft."""
    llm, _ = served
    asks = [Ask(prompt, DIFFUSION) for prompt in PROMPTS]
    others = [] if beside is None else [Ask(prompt, beside) for prompt in PROMPTS]
    found = tokens(together(llm, asks + others))
    exact = tokens(alone(llm, asks))
    assert exact == [ask.rounds(reference).tokens for ask in asks]
    assert found[: len(asks)] == exact
    assert found[len(asks) :] == [Ask(ask.prompt, {"nld_mode": "ar"}).rounds(reference).tokens for ask in others]
