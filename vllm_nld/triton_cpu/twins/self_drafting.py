"""Self-drafting: the layout of the blocks and the inputs of a forward over them (kernels in `spec_worker.kernels`)."""


def lay_blocks(
    grid_0,  # R
    grid_1,
    starts,
    ids,
    masked,
    count,
    rows,
    lengths,
    positions,
    query_start_loc,
    idx_mapping,
    num_sampled,
    num_rejected,
    last_sampled,
    next_prompt,
    mask_token_id,
    block_length,
    max_model_len,
    COUNT,
    WIDTH,
):
    """Per block: the anchor after the accepted tokens, then masks."""
    for block in range(grid_0):
        row = rows[block]
        slot = idx_mapping[row]
        first = query_start_loc[row]
        start = positions[first] + query_start_loc[row + 1] - first - num_rejected[row]
        drafts = min(lengths[block], max_model_len - start) - 1
        starts[block] = start
        ids[block * block_length] = last_sampled[slot] if num_sampled[row] > 0 else next_prompt[slot]
        for place in range(block_length - 1):
            ids[block * block_length + 1 + place] = mask_token_id
            masked[block * (block_length - 1) + place] = place < drafts
        if COUNT:
            count[slot] = max(drafts, 0)


def fill_pass(
    grid_0,  # requests + 1
    grid_1,
    input_ids,
    positions,
    slots,
    query_start_loc,
    seq_lens,
    table_out,
    plan,
    ids,
    starts,
    table,
    owned,
    blocks,
    total,
    requests,
    tokens,
    block_length,
    table_width,
    kv_block_size,
    max_model_len,
    WRITE,
    NO_SLOT,
    WIDTH,
):
    """Per block: its tokens in order, its length and its KV blocks; then the padding requests and tokens."""
    for request in range(blocks):
        block, row = plan[request], plan[blocks + request]
        own = owned[plan[2 * blocks + request]]
        length, first = plan[3 * blocks + request], plan[4 * blocks + request]
        start = starts[block]
        for place in range(length):
            position = start + place
            column = position // kv_block_size
            slot = NO_SLOT
            if WRITE and column < own and position < max_model_len:
                slot = table[row * table_width + column] * kv_block_size + position % kv_block_size
            input_ids[first + place] = ids[block * block_length + place]
            positions[first + place] = min(position, max_model_len - 1)
            slots[first + place] = slot
        query_start_loc[request] = first
        seq_lens[request] = max(min(start + length, own * kv_block_size, max_model_len), length)
        for column in range(own):
            table_out[request * table_width + column] = table[row * table_width + column]
    for request in range(blocks, requests + 1):
        query_start_loc[request] = total
    for request in range(blocks, requests):
        seq_lens[request] = 0
        for column in range(table_width):
            table_out[request * table_width + column] = 0
    for token in range(total, tokens):
        input_ids[token] = 0
        positions[token] = 0
        slots[token] = NO_SLOT
