"""Twins of our own drafting kernels write the same memory as the kernels in the interpreter."""

from hypothesis import given
from hypothesis import strategies as st

from tests.triton_cpu import cases
from tests.triton_cpu.harness import CASES, SEEDS


@CASES
@given(SEEDS, st.integers(1, 4), st.integers(0, 3), st.sampled_from([2, 3, 8]), st.booleans())
def test_lay_blocks(seed: int, blocks: int, others: int, block_length: int, count: bool) -> None:
    cases.lay_blocks(seed, blocks, others, block_length, count).check()


@CASES
@given(SEEDS, st.integers(1, 4), st.integers(0, 3), st.integers(0, 9), st.sampled_from([2, 3, 8]), st.booleans())
def test_fill_pass(seed: int, blocks: int, padding: int, spare: int, block_length: int, write: bool) -> None:
    cases.fill_pass(seed, blocks, padding, spare, block_length, write).check()
