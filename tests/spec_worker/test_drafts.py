"""What is drafted, not only what comes out: rounds and acceptance equal the reference's loop, prompt by prompt."""

from pathlib import Path
from typing import Any

import pytest

from tests.engines import engine, greedy, random_prompts
from tests.spec_worker.conftest import TOKENS, VOCAB, linear, metric, token_ids
from vllm_nld.reference import ReferenceModel, generate

PROMPTS = random_prompts(6, VOCAB, longest=150, seed=7)


def counters(llm: Any) -> tuple[int, int, int]:
    names = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
    return tuple(metric(llm, f"spec_decode_{name}") for name in names)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"draft_lora": "off"},
        {"draft_threshold": 0.45},
        {"draft_threshold": 1.0},
    ],
    ids=["adapter", "no adapter", "threshold", "one a pass"],
)
def test_rounds_equal_the_reference(settings: dict[str, Any], agreeable_checkpoint: Path) -> None:
    model = ReferenceModel.from_pretrained(agreeable_checkpoint, adapter=settings.get("draft_lora") != "off")
    with engine(agreeable_checkpoint, **linear(8, **settings)) as llm:
        for prompt in PROMPTS:
            before = counters(llm)
            output = greedy(llm, [prompt], TOKENS)
            drafts, draft_tokens, accepted = (now - then for now, then in zip(counters(llm), before, strict=True))
            exact = generate(
                model,
                prompt,
                mode="linear",
                block_length=8,
                threshold=settings.get("draft_threshold", 0.0),
                max_new_tokens=TOKENS,
                ignore_eos=True,
            )
            assert token_ids(output) == [exact.tokens]
            assert drafts == len(exact.rounds)
            assert draft_tokens == 7 * drafts
            # vLLM counts what the last round accepted beyond max_tokens, the reference cuts it
            assert 0 <= accepted - (sum(exact.rounds) - drafts) < 8


def test_a_batch_drafts_as_each_of_its_requests_alone(
    agreeable_checkpoint: Path, prompts: list[list[int]], reference: ReferenceModel
) -> None:
    """Blocks of 16 requests in passes of 4: the token budget has no room for more."""
    with engine(agreeable_checkpoint, **linear(8), max_num_batched_tokens=32) as llm:
        outputs = greedy(llm, PROMPTS * 3, TOKENS)
        drafts = metric(llm, "spec_decode_num_drafts")
    exact = [
        generate(reference, prompt, mode="linear", block_length=8, max_new_tokens=TOKENS, ignore_eos=True)
        for prompt in PROMPTS
    ] * 3
    assert token_ids(outputs) == [generation.tokens for generation in exact]
    assert drafts >= sum(len(generation.rounds) for generation in exact)  # the budget cuts some blocks short
