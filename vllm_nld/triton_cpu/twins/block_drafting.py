"""Inputs of a draft forward that fills a whole block at once: an anchor and mask tokens after each context."""

from numba import njit


@njit
def local_slot(position, block, block_size, cp_rank, cp_size, cp_interleave, pad):
    """The cache slot of a position in KV block `block`; `pad` if another rank stores it or the block is null (0)."""
    if block == 0:
        return pad
    offset = position % (block_size * cp_size)
    if cp_size == 1:
        return block * block_size + offset
    if offset // cp_interleave % cp_size != cp_rank:
        return pad
    rounds = offset // (cp_interleave * cp_size)
    return block * block_size + rounds * cp_interleave + offset % cp_interleave


def prepare_block(
    grid_0,  # R
    grid_1,
    out_input_ids,  # [R x Q], written; Q = num_query_per_req
    out_query_positions,  # [R x Q], written
    out_query_start_loc,  # [M + 1], written
    out_seq_lens,  # [M], written
    out_query_slot_mapping,  # [max_num_tokens], written
    out_context_positions,  # [T], written
    out_context_slot_mapping,  # [T], written
    out_sample_indices,  # [M x K], written
    out_sample_pos,  # [M x K], written
    out_sample_idx_mapping,  # [M x K], written
    out_temperature,  # [M], written
    out_seeds,  # [M], written
    target_positions,  # [T]
    target_query_start_loc,  # [R + 1]
    idx_mapping,  # [R]
    last_sampled,  # [M]
    next_prefill_tokens,  # [M]
    num_sampled,  # [R]
    num_rejected,  # [R]
    temperature,  # [M]
    seeds,  # [M]
    block_table,  # [R, blocks]
    block_table_stride,  # also the number of columns
    parallel_drafting_token_id,  # the mask token
    block_size,
    num_query_per_req,
    num_speculative_steps,
    max_num_reqs,
    max_num_tokens,
    max_model_len,
    cp_rank,
    SAMPLE_FROM_ANCHOR,
    PAD_SLOT_ID,
    CP_SIZE,
    CP_INTERLEAVE,
    BLOCK_SIZE,
    out_is_padding=None,  # [R x Q] bool, written
):
    """Per request: positions and slots of its accepted context, then [newest token, mask, …] from the next position on.

    With SAMPLE_FROM_ANCHOR every row of the block is sampled, for the position after it; otherwise every row but the
    anchor, for its own position. Rejected context rows get position 0 and no slot; padded sample rows point at row 0
    and request -1.
    """
    skipped = 0 if SAMPLE_FROM_ANCHOR else 1
    for row in range(grid_0):
        request = idx_mapping[row]
        start, end = target_query_start_loc[row], target_query_start_loc[row + 1]
        valid_end = end - num_rejected[row]
        table = row * block_table_stride
        for token in range(start, end):
            position, slot = 0, PAD_SLOT_ID
            if token < valid_end:
                position = target_positions[token]
                column = min(position // (block_size * CP_SIZE), block_table_stride - 1)
                block = block_table[table + column]
                slot = local_slot(position, block, block_size, cp_rank, CP_SIZE, CP_INTERLEAVE, PAD_SLOT_ID)
            out_context_positions[token] = position
            out_context_slot_mapping[token] = slot
        first = target_positions[valid_end - 1] + 1
        anchor = last_sampled[request] if num_sampled[row] > 0 else next_prefill_tokens[request]
        for i in range(num_query_per_req):
            query = row * num_query_per_req + i
            position = first + i
            column = min(position // (block_size * CP_SIZE), block_table_stride - 1)
            block = block_table[table + column]
            if out_is_padding is not None:
                out_is_padding[query] = False
            out_input_ids[query] = anchor if i == 0 else parallel_drafting_token_id
            out_query_positions[query] = min(position, max_model_len - 1)
            out_query_slot_mapping[query] = local_slot(
                position, block, block_size, cp_rank, CP_SIZE, CP_INTERLEAVE, PAD_SLOT_ID
            )
            if i >= skipped:
                sample = row * num_speculative_steps + i - skipped
                out_sample_indices[sample] = query
                out_sample_pos[sample] = position + 1 - skipped
                out_sample_idx_mapping[sample] = request
        out_query_start_loc[row] = row * num_query_per_req
        out_seq_lens[row] = min(first + num_query_per_req, max_model_len)
        out_temperature[request] = temperature[request]
        out_seeds[request] = seeds[request]
    queries = grid_0 * num_query_per_req
    for i in range(grid_0, max_num_reqs + 1):
        out_query_start_loc[i] = queries
    for i in range(grid_0, max_num_reqs):
        out_seq_lens[i] = 0
    for i in range(grid_0 * num_speculative_steps, max_num_reqs * num_speculative_steps):
        out_sample_indices[i] = 0
        out_sample_pos[i] = 0
        out_sample_idx_mapping[i] = -1
    for i in range(queries, max_num_tokens):
        out_query_slot_mapping[i] = PAD_SLOT_ID
        if out_is_padding is not None:
            out_input_ids[i] = 0
            out_query_positions[i] = 0
            out_is_padding[i] = True
