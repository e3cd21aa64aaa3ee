"""The thinking budget is exact in every mode."""

import pytest

from tests.scale import spread
from vllm_nld.reference import ReferenceModel, generate
from vllm_nld.reference.thinking import Thinking

START, END = 12, 13
OPTIONS = [
    pytest.param(
        {"mode": mode, "temperature": temperature, "seed": 0, "threshold": threshold}, id=f"{mode}-{temperature}"
    )
    for mode, threshold in (("ar", None), ("diffusion", 0.5), ("linear", None), ("quadratic", None))
    for temperature in (0.0, 1.0)
]


@pytest.mark.parametrize("block_length", [2, 5, 16])
@pytest.mark.parametrize("options", spread(OPTIONS))
def test_end_is_forced_once_the_budget_is_used_up(model: ReferenceModel, options: dict, block_length: int) -> None:
    for budget in (0, 1, 4, 5, 12):
        found = generate(
            model,
            [7, START],
            max_new_tokens=14,
            block_length=block_length,
            thinking_budget=budget,
            ignore_eos=True,
            **options,
        )
        assert len(found.tokens) == 14
        assert END in found.tokens[: budget + 1]


@pytest.mark.parametrize("mode", ["ar", "diffusion", "linear", "quadratic"])
def test_prompt_tokens_count_but_a_closed_pair_does_not(model: ReferenceModel, mode: str) -> None:
    options = {"mode": mode, "max_new_tokens": 8, "block_length": 4, "ignore_eos": True}
    assert generate(model, [START, 14, 14], thinking_budget=3, **options).tokens.index(END) <= 1
    assert generate(model, [START, 14, 14], thinking_budget=2, **options).tokens[0] == END
    assert generate(model, [START, 14, 14], thinking_budget=1, **options).tokens[0] == END
    closed = [START, END, 7]
    assert generate(model, closed, thinking_budget=0, **options) == generate(model, closed, **options)


@pytest.mark.parametrize("mode", ["ar", "diffusion", "linear", "quadratic"])
def test_unreached_budget_has_no_effect(model: ReferenceModel, mode: str) -> None:
    options = {"mode": mode, "max_new_tokens": 10, "block_length": 4, "ignore_eos": True}
    assert generate(model, [START], thinking_budget=10, **options) == generate(model, [START], **options)


@pytest.mark.parametrize("mode", ["ar", "diffusion", "linear", "quadratic"])
def test_thinking_started_by_the_output(model: ReferenceModel, mode: str) -> None:
    """Whichever output token is the start tag, the section that it opens is closed within the budget."""
    options = {"mode": mode, "max_new_tokens": 12, "block_length": 5, "ignore_eos": True}
    for start in dict.fromkeys(generate(model, [7, 8], **options).tokens[:6]):
        found = generate(model, [7, 8], thinking_budget=3, think_start_id=start, think_end_id=319, **options).tokens
        assert 319 in found[found.index(start) : found.index(start) + 5]


def test_state() -> None:
    thinking = Thinking(2, START, END)
    assert thinking.read([5, 6]).forced is None
    assert thinking.read([START, 5]).forced is None
    assert thinking.read([START]).forced == END  # a start tag inside thinking counts like any token
    assert thinking.read([END]).forced is None
    assert Thinking(0, START, END).read([START]).forced == END
