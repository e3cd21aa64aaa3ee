"""Inputs of a target forward: token ids, positions, sequence lengths, and the rows to sample from."""


def prepare_prefill_inputs(
    grid_0,  # R
    grid_1,
    input_ids,  # [T], written
    next_prefill_tokens,  # [num_lookahead, M], written
    next_prefill_tokens_stride,
    num_lookahead,
    idx_mapping,  # [R]
    query_start_loc,  # [R + 1]
    all_token_ids,  # [M, length]
    all_token_ids_stride,
    prefill_lens,  # [M]
    num_computed_tokens,  # [M]
    BLOCK_SIZE,
    LOOKAHEAD_BLOCK,
):
    """Copy the scheduled part of each prefill, and store the prefill tokens that follow it (0 past the end)."""
    for row in range(grid_0):
        request = idx_mapping[row]
        prefill_len = prefill_lens[request]
        computed = num_computed_tokens[request]
        if computed >= prefill_len:
            continue
        tokens = request * all_token_ids_stride
        start = query_start_loc[row]
        length = query_start_loc[row + 1] - start
        for i in range(length):
            input_ids[start + i] = all_token_ids[tokens + computed + i]
        for i in range(num_lookahead):
            position = computed + length + i
            token = 0
            if position < prefill_len:
                token = all_token_ids[tokens + position]
            next_prefill_tokens[i * next_prefill_tokens_stride + request] = token


def prepare_pos_seq_lens(
    grid_0,  # R + 1: the last one pads
    grid_1,
    pos,  # [T], written
    seq_lens,  # [M], written
    idx_mapping,  # [R]
    query_start_loc,  # [R + 1]
    num_computed_tokens,  # [M]
    max_num_reqs,
    BLOCK_SIZE,
):
    """Positions continue each request's computed tokens; sequence lengths include this step, 0 for padding rows."""
    requests = grid_0 - 1
    for row in range(requests):
        computed = num_computed_tokens[idx_mapping[row]]
        start = query_start_loc[row]
        length = query_start_loc[row + 1] - start
        seq_lens[row] = computed + length
        for i in range(length):
            pos[start + i] = computed + i
    for row in range(requests, max_num_reqs):
        seq_lens[row] = 0


def combine_tokens(
    grid_0,  # R
    grid_1,
    input_ids,  # [T], written
    idx_mapping,  # [R]
    last_sampled_tokens,  # [M]
    query_start_loc,  # [R + 1]
    seq_lens,  # [R]
    prefill_len,  # [M]
    draft_tokens,  # [M, K]
    draft_tokens_stride,
    cu_num_logits,  # [R + 1]
    logits_indices,  # [N], written
    BLOCK_SIZE,
    NUM_NEW_SAMPLED_TOKENS,
):
    """List the rows to sample from, the last ones of each query; past the prefill, also write the sampled and draft
    tokens into them."""
    for row in range(grid_0):
        request = idx_mapping[row]
        first = cu_num_logits[row]
        num_logits = cu_num_logits[row + 1] - first
        end = query_start_loc[row + 1]
        start = end - num_logits
        for i in range(num_logits):
            logits_indices[first + i] = start + i
        if seq_lens[row] <= prefill_len[request]:
            continue
        if NUM_NEW_SAMPLED_TOKENS > 0 and seq_lens[row] - num_logits >= prefill_len[request]:
            input_ids[start] = last_sampled_tokens[request]
        drafts = num_logits - NUM_NEW_SAMPLED_TOKENS
        for i in range(drafts):
            input_ids[end - drafts + i] = draft_tokens[request * draft_tokens_stride + i]


def expand_idx_mapping(
    grid_0,  # R
    grid_1,
    idx_mapping,  # [R]
    expanded_idx_mapping,  # [N], written
    expanded_local_pos,  # [N], written
    cu_num_logits,  # [R + 1]
    BLOCK_SIZE,
):
    """For each logit row, its request's slot and its index within the request's rows."""
    for row in range(grid_0):
        first = cu_num_logits[row]
        for i in range(cu_num_logits[row + 1] - first):
            expanded_idx_mapping[first + i] = idx_mapping[row]
            expanded_local_pos[first + i] = i
