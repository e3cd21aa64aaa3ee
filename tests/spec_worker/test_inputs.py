"""What a forward reads: always at the same addresses, equal to plain Python, and padded with what does nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.v1.worker.gpu.input_batch import InputBuffers

from spec_worker.blocks import Layout
from spec_worker.inputs import NO_SLOT, Inputs, Pass

B, P, W, CONTEXT, REQUESTS, MASK = 6, 4, 10, 40, 5, 100


def empty() -> Inputs:
    return Inputs(InputBuffers(REQUESTS, REQUESTS * B, torch.device("cpu")), P, W, CONTEXT)


def tensors(inputs: Inputs) -> dict[str, torch.Tensor]:
    buffers = inputs.buffers
    return {
        "input_ids": buffers.input_ids,
        "positions": buffers.positions,
        "query_start_loc": buffers.query_start_loc,
        "seq_lens": buffers.seq_lens,
        "table": inputs.table,
        "slots": inputs.slots,
    }


def blocks(starts: list[int], lengths: list[int], owned: list[int] | None = None, write: bool = True) -> Pass:
    """Request r owns the KV blocks 10 r + 1, 10 r + 2, ..., as many as its block needs; the last row is the first's."""
    count = len(starts)
    owned = owned or [min(-(-(start + length) // P), W) for start, length in zip(starts, lengths, strict=True)]
    last_first = np.arange(count)[::-1]
    table = torch.arange(1, W + 1, dtype=torch.int32) + 10 * torch.arange(count, dtype=torch.int32)[:, None]
    return Pass(
        layout=Layout(np.array(lengths), B),
        ids=(torch.arange(count)[:, None] * 1000 + torch.arange(B)).flip(0),
        starts=torch.tensor(starts[::-1]),
        table=table.flip(0),
        owned=torch.tensor(owned[::-1], dtype=torch.int32),
        block=last_first,
        row=last_first,
        slot=last_first,
        lora=np.zeros(count, dtype=np.int64),
        context=np.array(starts, dtype=np.int32),
        write=write,
    )


@st.composite
def passes(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    """Starts, lengths, and the number of requests that the shape has."""
    count = draw(st.integers(1, REQUESTS))
    starts = draw(st.lists(st.integers(0, CONTEXT - 1), min_size=count, max_size=count))
    lengths = draw(st.lists(st.integers(2, B), min_size=count, max_size=count))
    return starts, lengths, draw(st.integers(count, REQUESTS))


@settings(max_examples=100, deadline=None)
@given(st.lists(passes(), min_size=1, max_size=3), st.booleans())
def test_a_pass_is_laid_out_and_padded(steps: list[tuple[list[int], list[int], int]], write: bool) -> None:
    """Whatever the pass before has left in the buffers."""
    inputs = empty()
    where = {name: tensor.data_ptr() for name, tensor in tensors(inputs).items()}
    for starts, lengths, requests in steps:
        total, tokens = sum(lengths), sum(lengths) + (requests - len(lengths)) * B
        inputs.fill(blocks(starts, lengths, write=write), requests, tokens)
        buffers, row = inputs.buffers, 0
        for request, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            assert buffers.query_start_loc[request] == row
            assert buffers.seq_lens[request] == max(min(start + length, CONTEXT), length)
            owned = min(-(-(start + length) // P), W)
            assert inputs.table[request, :owned].tolist() == [10 * request + 1 + block for block in range(owned)]
            for place in range(length):
                position = start + place
                slot = (10 * request + 1 + position // P) * P + position % P
                assert buffers.input_ids[row] == 1000 * request + place
                assert buffers.positions[row] == min(position, CONTEXT - 1)
                assert inputs.slots[0, row] == (slot if write and position < CONTEXT else NO_SLOT)
                row += 1
        assert (buffers.query_start_loc[len(lengths) : requests + 1] == total).all(), "padding has no rows"
        assert (buffers.seq_lens[len(lengths) : requests] == 0).all(), "and no tokens to look at"
        assert (inputs.table[len(lengths) : requests] == 0).all(), "it names the null block only"
        assert (inputs.slots[:, total:tokens] == NO_SLOT).all(), "and writes nothing"
        assert {name: tensor.data_ptr() for name, tensor in tensors(inputs).items()} == where
    assert not inputs.get_dummy_block_tables(REQUESTS)[0].any()
    assert (inputs.get_dummy_slot_mappings(tokens) == NO_SLOT).all()
    assert inputs.get_dummy_slot_mappings(tokens).data_ptr() == where["slots"]


@settings(max_examples=100, deadline=None)
@given(start=st.integers(0, CONTEXT - 1), length=st.integers(2, B), owned=st.integers(1, W))
def test_slots_lie_in_owned_blocks_only(start: int, length: int, owned: int) -> None:
    inputs = empty()
    inputs.fill(blocks([start], [length], [owned]), 1, length)
    slots = inputs.slots[0, :length].tolist()
    for position, slot in enumerate(slots, start):
        inside = position < CONTEXT and position < owned * P
        assert slot == ((1 + position // P) * P + position % P if inside else NO_SLOT)
    assert inputs.buffers.seq_lens[0] == max(min(start + length, owned * P, CONTEXT), length)


def test_a_pass_has_a_row_a_block() -> None:
    one = blocks([0], [2])
    with pytest.raises(ValueError, match="2 blocks need as many rows"):
        replace(one, layout=Layout(np.array([2, 2]), B))
