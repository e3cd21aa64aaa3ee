"""Twins of the block-table kernels write the same memory as vLLM's kernels in the interpreter."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.triton_cpu.harness import CASES, SEEDS, Table, assert_equal, generator, ints, native_of, slots, starts

MODULE = "vllm.v1.worker.gpu.block_table"


@CASES
@given(
    SEEDS,
    st.integers(1, 3),
    st.integers(0, 4),
    st.integers(0, 2),
    st.sampled_from([torch.int32, torch.int64]),
    st.booleans(),
)
def test_gather_block_tables(
    seed: int, groups: int, requests: int, padding: int, index: torch.dtype, windows: bool
) -> None:
    g = generator(seed)
    most = requests + padding + 1
    strides = ints(g, 1, 7, groups, dtype=torch.int64)
    tables = [tuple(ints(g, 0, 99, most, int(s)) for s in strides) for _ in range(2)]
    assert_equal(
        MODULE,
        "_gather_block_tables_kernel",
        (groups, requests + padding),
        batch_idx_to_req_idx=slots(g, requests, most, index),
        src_block_table_ptrs=Table(tables[0]),
        dst_block_table_ptrs=Table(tables[1]),
        block_table_strides=strides,
        num_blocks_ptr=torch.stack([ints(g, 0, int(s), most) for s in strides]),
        num_blocks_stride=most,
        num_reqs=requests,
        BLOCK_SIZE=4,
        num_computed_tokens_ptr=ints(g, 0, 20, most),  # this and the rest: from vLLM 0.33 on
        sliding_window_reach_ptr=ints(g, 0, 1, groups) * ints(g, 1, 9, groups),
        block_sizes_ptr=ints(g, 1, 4, groups),
        MASK_SLIDING_WINDOW=windows,
    )


@CASES
@given(SEEDS, st.integers(1, 2), st.integers(0, 4), st.booleans())
def test_compute_slot_mappings(seed: int, groups: int, requests: int, dummies: bool) -> None:
    g = generator(seed)
    most, blocks = requests + 1, 12
    start = starts(ints(g, 0, 6, requests))
    sizes = torch.tensor([2, 4, 8], dtype=torch.int32)[ints(g, 0, 2, groups, dtype=torch.int64)]
    mapping = slots(g, requests, most)
    if dummies:
        mapping[torch.rand(requests, generator=g) < 0.3] = -1
    tokens = int(start[-1]) + int(ints(g, 0, 3, 1))
    assert_equal(
        MODULE,
        "_compute_slot_mappings_kernel",
        (groups, requests + 1),
        max_num_tokens=tokens,
        idx_mapping=mapping,
        query_start_loc=start,
        pos=ints(g, 0, blocks * 2 - 1, max(tokens, 1), dtype=torch.int64),
        block_table_ptrs=Table(tuple(ints(g, 0, 99, most, blocks) for _ in range(groups))),
        block_table_strides=torch.full((groups,), blocks, dtype=torch.int64),
        block_sizes=sizes,
        slot_mapping_enabled=torch.rand(groups, generator=g) < 0.8,
        dcp_sharded=torch.rand(groups, generator=g) < 0.7,
        slot_mappings_ptr=torch.full((groups, tokens + 2), 77),
        slot_mappings_stride=tokens + 2,
        cp_rank=0,
        CP_SIZE=1,
        CP_INTERLEAVE=1,
        PAD_ID=-1,
        TRITON_BLOCK_SIZE=4,
    )


@CASES
@given(SEEDS, st.integers(1, 3), st.sampled_from([1, 2, 4]), st.booleans())
def test_slot_mappings_with_context_parallelism(seed: int, ranks: int, interleave: int, sharded: bool) -> None:
    """Compared with a loop, because the kernel fails in the interpreter with context parallelism."""
    g = generator(seed)
    block_size, rank = 4, int(ints(g, 0, ranks - 1, 1))
    positions = ints(g, 0, 47, 9, dtype=torch.int64)
    table = ints(g, 1, 99, 1, 12)
    slots_out = torch.full((1, 9), 77)
    native_of(MODULE, "_compute_slot_mappings_kernel").launch(
        (1, 2),
        9,
        torch.zeros(1, dtype=torch.int32),
        torch.tensor([0, 9], dtype=torch.int32),
        positions,
        torch.tensor([table.data_ptr()], dtype=torch.uint64),
        torch.tensor([12]),
        torch.tensor([block_size], dtype=torch.int32),
        torch.tensor([True]),
        torch.tensor([sharded]),
        slots_out,
        9,
        rank,
        CP_SIZE=ranks,
        CP_INTERLEAVE=interleave,
        PAD_ID=-1,
        TRITON_BLOCK_SIZE=1024,
    )
    owned = [p for p in range(48) if not sharded or p // interleave % ranks == rank]
    place = {position: i for i, position in enumerate(owned)}
    expected = [
        int(table[0, place[p] // block_size]) * block_size + place[p] % block_size if p in place else -1
        for p in positions.tolist()
    ]
    assert slots_out[0].tolist() == expected


@CASES
@given(SEEDS, st.integers(1, 5), st.sampled_from([torch.int32, torch.int64, torch.float32]))
def test_apply_write_to_one_tensor(seed: int, writes: int, dtype: torch.dtype) -> None:
    g = generator(seed)
    lengths = ints(g, 0, 6, writes)
    assert_equal(
        "vllm.v1.worker.gpu.buffer_utils",
        "_apply_write_kernel",
        (writes, 2),  # two programs a write of more than BLOCK_SIZE; up to vLLM 0.32 each does the whole
        output_ptr=ints(g, 0, 9, 4, 10).to(dtype),
        output_stride=10,
        write_indices_ptr=ints(g, 0, 3, writes),
        write_starts_ptr=ints(g, 0, 4, writes),
        write_contents_ptr=ints(g, 10, 99, int(lengths.sum()) + 1).to(dtype),
        write_cu_lens_ptr=starts(lengths)[1:].clone(),
        write_group_ids_ptr=None,
        BLOCK_SIZE=4,
        MULTI_GROUP=False,
    )


@CASES
@given(SEEDS, st.integers(1, 5), st.integers(1, 3))
def test_apply_write_to_a_tensor_per_group(seed: int, writes: int, groups: int) -> None:
    g = generator(seed)
    lengths = ints(g, 0, 4, writes)
    strides = ints(g, 8, 10, groups, dtype=torch.int64)
    assert_equal(
        "vllm.v1.worker.gpu.buffer_utils",
        "_apply_write_kernel",
        (writes, 2),  # two programs a write of more than BLOCK_SIZE; up to vLLM 0.32 each does the whole
        output_ptr=Table(tuple(ints(g, 0, 9, 4, int(s)) for s in strides)),
        output_stride=strides,
        write_indices_ptr=ints(g, 0, 3, writes),
        write_starts_ptr=ints(g, 0, 4, writes),
        write_contents_ptr=ints(g, 10, 99, int(lengths.sum()) + 1),
        write_cu_lens_ptr=starts(lengths)[1:].clone(),
        write_group_ids_ptr=ints(g, 0, groups - 1, writes),
        BLOCK_SIZE=4,
        MULTI_GROUP=True,
    )
