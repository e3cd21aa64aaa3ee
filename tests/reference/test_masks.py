"""Each mask builder against a direct definition of which row sees which column."""

from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_nld.reference import masks

SIZES = {"new": st.integers(1, 6), "cached": st.integers(0, 5)}


@given(**SIZES)
def test_causal(new: int, cached: int) -> None:
    mask = masks.causal(new, cached)
    assert mask.tolist() == [[column <= cached + row for column in range(cached + new)] for row in range(new)]


@given(**SIZES)
def test_block(new: int, cached: int) -> None:
    assert masks.block(new, cached).tolist() == [[True] * (cached + new)] * new


@given(prompt=st.integers(1, 6), count=st.integers(1, 5))
def test_prompt_with_masks(prompt: int, count: int) -> None:
    total = prompt + count
    expected = [[row >= prompt or column <= row for column in range(total)] for row in range(total)]
    assert masks.prompt_with_masks(prompt, count).tolist() == expected


@settings(deadline=None)
@given(
    length=st.integers(1, 5),
    ends=st.lists(st.integers(0, 4), max_size=4),
    count=st.integers(1, 4),
    cached=st.integers(0, 5),
)
def test_quadratic_groups(length: int, ends: list[int], count: int, cached: int) -> None:
    ends = [end % length for end in ends]

    def sees(row: int, column: int) -> bool:
        if column < cached:
            return True
        column -= cached
        if row < length:
            return column <= row
        group = (row - length) // count
        return column <= ends[group] if column < length else (column - length) // count == group

    total = length + len(ends) * count
    expected = [[sees(row, column) for column in range(cached + total)] for row in range(total)]
    assert masks.quadratic_groups(length, ends, count, cached).tolist() == expected
