"""The thinking budget is exact in every mode."""

import pytest

from vllm_nld.reference import ReferenceModel, generate
from vllm_nld.reference.thinking import Thinking

START, END = 12, 13
HOW = [
    pytest.param(
        {"mode": mode, "temperature": temperature, "seed": 0, "threshold": threshold}, id=f"{mode}-{temperature}"
    )
    for mode, threshold in (("ar", None), ("diffusion", 0.5), ("linear", None), ("quadratic", None))
    for temperature in (0.0, 1.0)
]


@pytest.mark.parametrize("block_length", [2, 5, 16])
@pytest.mark.parametrize("how", HOW)
def test_end_is_forced_when_the_budget_is_used_up(model: ReferenceModel, how: dict, block_length: int) -> None:
    for budget in (0, 1, 4, 5, 12):
        found = generate(
            model,
            [7, START],
            max_new_tokens=14,
            block_length=block_length,
            thinking_budget=budget,
            ignore_eos=True,
            **how,
        )
        assert len(found.tokens) == 14
        assert END in found.tokens[: budget + 1]


@pytest.mark.parametrize("mode", ["ar", "diffusion", "linear", "quadratic"])
def test_prompt_tokens_count_and_a_closed_pair_does_not(model: ReferenceModel, mode: str) -> None:
    how = {"mode": mode, "max_new_tokens": 8, "block_length": 4, "ignore_eos": True}
    assert generate(model, [START, 14, 14], thinking_budget=3, **how).tokens.index(END) <= 1
    assert generate(model, [START, 14, 14], thinking_budget=2, **how).tokens[0] == END
    assert generate(model, [START, 14, 14], thinking_budget=1, **how).tokens[0] == END
    closed = [START, END, 7]
    assert generate(model, closed, thinking_budget=0, **how) == generate(model, closed, **how)


@pytest.mark.parametrize("mode", ["ar", "diffusion", "linear", "quadratic"])
def test_a_budget_that_is_not_reached_changes_nothing(model: ReferenceModel, mode: str) -> None:
    how = {"mode": mode, "max_new_tokens": 10, "block_length": 4, "ignore_eos": True}
    assert generate(model, [START], thinking_budget=10, **how) == generate(model, [START], **how)


@pytest.mark.parametrize("mode", ["ar", "diffusion", "linear", "quadratic"])
def test_thinking_that_the_output_starts(model: ReferenceModel, mode: str) -> None:
    """Every token of the output in turn made the start tag: its successor section closes on time."""
    how = {"mode": mode, "max_new_tokens": 12, "block_length": 5, "ignore_eos": True}
    for start in dict.fromkeys(generate(model, [7, 8], **how).tokens[:6]):
        found = generate(model, [7, 8], thinking_budget=3, think_start_id=start, think_end_id=319, **how).tokens
        assert 319 in found[found.index(start) : found.index(start) + 5]


def test_state() -> None:
    thinking = Thinking(2, START, END)
    assert thinking.read([5, 6]).forced is None
    assert thinking.read([START, 5]).forced is None
    assert thinking.read([START]).forced == END  # a start tag inside of thinking is a token like any other
    assert thinking.read([END]).forced is None
    assert Thinking(0, START, END).read([START]).forced == END
