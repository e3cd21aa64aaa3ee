"""The arithmetic of a draft pass against plain Python, one request at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spec_worker.blocks import NO_SLOT, Step, lookahead_slots, places, visible

P = 4  # tokens a KV block


@settings(max_examples=100, deadline=None)
@given(
    start=st.integers(0, 40),
    block_length=st.integers(2, 12),
    length=st.integers(2, 12),
    owned=st.integers(0, 11),
    context=st.integers(13, 44),
)
def test_slots_lie_in_owned_blocks_only(start: int, block_length: int, length: int, owned: int, context: int) -> None:
    length = min(length, block_length)
    table = torch.arange(100, 111, dtype=torch.int32)[None]
    arguments = (torch.tensor([start]), torch.tensor([length]))
    blocks = torch.tensor([owned], dtype=torch.int32)
    slots = lookahead_slots(*arguments, block_length, table, blocks, P, context)[0].tolist()
    for position, slot in enumerate(slots, start):
        inside = position < context and position < owned * P and position < start + length
        assert slot == ((100 + position // P) * P + position % P if inside else NO_SLOT)
    assert visible(*arguments, blocks, P, context).item() == min(start + length, owned * P, context)
    assert places(torch.tensor([start]), block_length, context)[0].tolist() == [
        min(start + i, context - 1) for i in range(block_length)
    ]


def step(**overrides: torch.Tensor) -> Step:
    """Three requests: one that accepted 2 of 4 rows, one inside its prompt, one at its prompt's end."""
    fields = {
        "positions": torch.tensor([10, 11, 12, 13, 0, 1, 2, 7]),
        "query_start_loc": torch.tensor([0, 4, 7, 8], dtype=torch.int32),
        "slots": torch.tensor([2, 0, 1]),
        "num_sampled": torch.tensor([2, 0, 1], dtype=torch.int32),
        "num_rejected": torch.tensor([2, 0, 0], dtype=torch.int32),
        "last_sampled": torch.tensor([70, 71, 72]),
        "next_prompt": torch.tensor([80, 81, 82], dtype=torch.int32),
    }
    return Step(**(fields | overrides))


def test_a_block_starts_after_what_was_kept() -> None:
    assert step().starts().tolist() == [12, 3, 8]


def test_the_anchor_is_the_last_accepted_token() -> None:
    assert step().anchors().tolist() == [72, 80, 71]


def test_a_step_checks_itself() -> None:
    with pytest.raises(ValueError, match="3 requests need 4 query starts"):
        step(query_start_loc=torch.tensor([0, 4]))
