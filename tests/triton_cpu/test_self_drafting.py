"""Twins of our own drafting kernels write the same memory as the kernels in the interpreter."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.triton_cpu.harness import CASES, SEEDS, assert_equal, generator, ints, slots, starts

MODULE = "spec_worker.kernels"
CONTEXT = 40


@CASES
@given(SEEDS, st.integers(1, 4), st.integers(0, 3), st.sampled_from([2, 3, 8]), st.booleans())
def test_lay_blocks(seed: int, blocks: int, others: int, block_length: int, count: bool) -> None:
    g = generator(seed)
    requests = blocks + others
    most = requests + 1
    queries = ints(g, 1, 6, requests)
    start = starts(queries)
    tokens = int(start[-1])
    assert_equal(
        MODULE,
        "lay_blocks_kernel",
        (blocks,),
        starts_ptr=torch.full((blocks,), -7),
        ids_ptr=torch.full((blocks, block_length), -7),
        masked_ptr=torch.rand(blocks, block_length - 1, generator=g) < 0.5,
        count_ptr=torch.full((most,), -7),
        rows_ptr=slots(g, blocks, requests, torch.int64),
        lengths_ptr=ints(g, 2, block_length, blocks, dtype=torch.int64),
        positions_ptr=ints(g, 0, CONTEXT - 2, tokens, dtype=torch.int64),
        query_start_loc_ptr=start,
        idx_mapping_ptr=slots(g, requests, most),
        num_sampled_ptr=ints(g, 0, 2, requests),
        num_rejected_ptr=(torch.rand(requests, generator=g) * queries).int(),
        last_sampled_ptr=ints(g, 100, 199, most, 1, dtype=torch.int64),
        next_prompt_ptr=ints(g, 200, 299, 1, most),
        mask_token_id=99,
        block_length=block_length,
        max_model_len=CONTEXT,
        COUNT=count,
        WIDTH=1 << (block_length - 1).bit_length(),
    )


@CASES
@given(SEEDS, st.integers(1, 4), st.integers(0, 3), st.integers(0, 9), st.sampled_from([2, 3, 8]), st.booleans())
def test_fill_pass(seed: int, blocks: int, padding: int, spare: int, block_length: int, write: bool) -> None:
    g = generator(seed)
    requests, most, width, kv_block = blocks + padding, blocks + 2, 9, 4
    lengths = ints(g, 2, block_length, blocks, dtype=torch.int64)
    first = starts(lengths)
    total = int(first[-1])
    tokens = total + spare
    places = [slots(g, blocks, most, torch.int64) for _ in range(3)]
    assert_equal(
        MODULE,
        "fill_pass_kernel",
        (requests + 1,),
        input_ids_ptr=torch.full((tokens + 2,), -7, dtype=torch.int32),
        positions_ptr=torch.full((tokens + 2,), -7),
        slots_ptr=torch.full((1, tokens + 2), -7),
        query_start_loc_ptr=torch.full((requests + 3,), -7, dtype=torch.int32),
        seq_lens_ptr=torch.full((requests + 2,), -7, dtype=torch.int32),
        table_out_ptr=torch.full((requests + 2, width), -7, dtype=torch.int32),
        plan_ptr=torch.stack([*places, lengths, first[:-1].long()]),
        ids_ptr=ints(g, 0, 99, most, block_length, dtype=torch.int64),
        starts_ptr=ints(g, 0, CONTEXT - 1, most, dtype=torch.int64),
        table_ptr=ints(g, 0, 99, most, width),
        owned_ptr=ints(g, 0, width, most),
        blocks=blocks,
        total=total,
        requests=requests,
        tokens=tokens,
        block_length=block_length,
        table_width=width,
        kv_block_size=kv_block,
        max_model_len=CONTEXT,
        WRITE=write,
        NO_SLOT=-1,
        WIDTH=1 << (block_length - 1).bit_length(),
    )
