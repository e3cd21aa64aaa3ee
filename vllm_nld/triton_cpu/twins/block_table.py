"""Block tables: staged writes from the host, the batch's tables, and each token's cache slot."""

from vllm_nld.triton_cpu.twins.pointers import int32_at, rows_of, value_of


def apply_write(
    grid_0,  # number of writes
    grid_1,
    output,  # [rows, row] any type, or [G] uint64 addresses of int32 tensors
    output_stride,  # row stride, or [G] int64
    write_indices,  # [writes] row
    write_starts,  # [writes] first column
    write_contents,  # flat, all writes concatenated
    write_cu_lens,  # [writes] end of each write's contents
    write_group_ids,  # [writes], None without groups
    BLOCK_SIZE,
    MULTI_GROUP,
):
    """Copy each write's contents into its row, in order."""
    begin = 0
    for write in range(grid_0):
        end = write_cu_lens[write]
        group = 0
        if write_group_ids is not None:
            group = write_group_ids[write]
        rows = rows_of(output, group)
        start = write_indices[write] * value_of(output_stride, group) + write_starts[write]
        for i in range(end - begin):
            rows[start + i] = write_contents[begin + i]
        begin = end


def gather_block_tables(
    grid_0,  # G
    grid_1,  # R, padding rows included
    batch_idx_to_req_idx,  # [R]
    src_block_table_ptrs,  # [G] addresses of [M, blocks] int32
    dst_block_table_ptrs,  # [G] addresses of [R, blocks] int32
    block_table_strides,  # [G] also the number of columns
    num_blocks,  # [G, M]
    num_blocks_stride,
    num_reqs,  # R without padding
    BLOCK_SIZE,
    num_computed_tokens=None,  # [M] with MASK_SLIDING_WINDOW
    sliding_window_reach=None,  # [G] tokens before the first computed position that attention reads; 0: all
    block_sizes=None,  # [G]
    MASK_SLIDING_WINDOW=False,
):
    """Copy the used part of each request's table into its batch row; zero the padding rows.

    With MASK_SLIDING_WINDOW, blocks wholly before a group's window become 0, the null block.
    """
    for group in range(grid_0):
        stride = block_table_strides[group]
        source = int32_at(src_block_table_ptrs[group])
        target = int32_at(dst_block_table_ptrs[group])
        for row in range(grid_1):
            if row < num_reqs:
                request = batch_idx_to_req_idx[row]
                unread = 0
                if sliding_window_reach is not None:
                    reach = sliding_window_reach[group]
                    if MASK_SLIDING_WINDOW and reach > 0:
                        unread = max(num_computed_tokens[request] - reach, 0) // block_sizes[group]
                for i in range(num_blocks[group * num_blocks_stride + request]):
                    target[row * stride + i] = source[request * stride + i] if i >= unread else 0
            else:
                for i in range(stride):
                    target[row * stride + i] = 0


def compute_slot_mappings(
    grid_0,  # G
    grid_1,  # R + 1: the last one pads
    max_num_tokens,
    idx_mapping,  # [R] request slot, -1 for a dummy
    query_start_loc,  # [R + 1]
    pos,  # [T]
    block_table_ptrs,  # [G] addresses of [M, blocks] int32
    block_table_strides,  # [G]
    block_sizes,  # [G]
    slot_mapping_enabled,  # [G]
    dcp_sharded,  # [G]
    slot_mappings,  # [G, max_num_tokens] int64, written
    slot_mappings_stride,
    cp_rank,
    CP_SIZE,
    CP_INTERLEAVE,
    PAD_ID,
    TRITON_BLOCK_SIZE,
):
    """The cache slot of each token: block number x block size + offset; PAD_ID if this rank doesn't store it.

    With context parallelism, positions go to CP_SIZE ranks in turn, in runs of CP_INTERLEAVE, within blocks that are
    CP_SIZE times as long; an unsharded group stores all of them.
    """
    requests = grid_1 - 1
    for group in range(grid_0):
        table = int32_at(block_table_ptrs[group])
        stride = block_table_strides[group]
        block_size = block_sizes[group]
        enabled = slot_mapping_enabled[group] != 0
        sharded = CP_SIZE != 1 and dcp_sharded[group] != 0
        out = group * slot_mappings_stride
        for row in range(requests):
            request = idx_mapping[row]
            for token in range(query_start_loc[row], query_start_loc[row + 1]):
                slot = PAD_ID
                if enabled and request >= 0:
                    position = pos[token]
                    stored = True
                    if sharded:
                        offset = position % (block_size * CP_SIZE)
                        stored = offset // CP_INTERLEAVE % CP_SIZE == cp_rank
                        position = position // (block_size * CP_SIZE) * block_size
                        position += offset // (CP_INTERLEAVE * CP_SIZE) * CP_INTERLEAVE + offset % CP_INTERLEAVE
                    if stored:
                        block = table[request * stride + position // block_size]
                        slot = block * block_size + position % block_size
                slot_mappings[out + token] = slot
        for token in range(query_start_loc[requests], max_num_tokens):
            slot_mappings[out + token] = PAD_ID
