"""Inputs of draft forwards for speculators that draft token by token, standalone or from the target's hidden states."""


def prepare_target_dependent_prefill(
    grid_0,  # R
    grid_1,
    last_token_indices,  # [M], written
    draft_current_step,  # [1], zeroed
    draft_input_ids,  # [T], written
    draft_positions,  # [T], written
    draft_query_start_loc,  # [M + 1], written
    draft_seq_lens,  # [M], written
    target_input_ids,  # [T]
    target_positions,  # [T]
    idx_mapping,  # [R]
    last_sampled,  # [M]
    next_prefill_tokens,  # [M]
    num_sampled,  # [R]
    num_rejected,  # [R]
    query_start_loc,  # [R + 1]
    seq_lens,  # [R]
    max_num_reqs,
    BLOCK_SIZE,
):
    """The target's inputs without rejected tokens, shifted by one: each position gets the token after it, the last
    position the newest token."""
    for row in range(grid_0):
        request = idx_mapping[row]
        start = query_start_loc[row]
        length = query_start_loc[row + 1] - start - num_rejected[row]
        for i in range(1, length):
            draft_input_ids[start + i - 1] = target_input_ids[start + i]
        last = start + length - 1
        last_token_indices[row] = last
        draft_input_ids[last] = last_sampled[request] if num_sampled[row] > 0 else next_prefill_tokens[request]
        for i in range(length):
            draft_positions[start + i] = target_positions[start + i]
        draft_query_start_loc[row] = start
        draft_seq_lens[row] = seq_lens[row]
    draft_current_step[0] = 0
    for i in range(grid_0, max_num_reqs + 1):
        draft_query_start_loc[i] = query_start_loc[grid_0]
    for i in range(grid_0, max_num_reqs):
        draft_seq_lens[i] = 0
        last_token_indices[i] = 0


def prepare_decode(
    grid_0,  # R + 1: the last one pads
    grid_1,
    draft_tokens,  # [R, K]: the first draft is read
    draft_tokens_stride,
    target_seq_lens,  # [R]
    num_rejected,  # [R]
    input_ids,  # [R], written
    positions,  # [R], read and written
    sample_src_positions,  # [R], advanced
    query_start_loc,  # [M + 1], written
    seq_lens,  # [M], written
    max_model_len,
    max_num_reqs,
    BLOCK_SIZE,
    ADVANCE_DRAFT_POSITIONS,
):
    """Inputs of the second draft step: one token per request, its first draft."""
    requests = grid_0 - 1
    for row in range(requests):
        input_ids[row] = draft_tokens[row * draft_tokens_stride]
        sample_src_positions[row] += 1
        length = target_seq_lens[row] - num_rejected[row]
        if ADVANCE_DRAFT_POSITIONS:
            positions[row] = min(positions[row] + 1, max_model_len - 1)
            length = min(length + 1, max_model_len)
        seq_lens[row] = length
    for i in range(max_num_reqs + 1):
        query_start_loc[i] = min(i, requests)
    for i in range(requests, max_num_reqs):
        seq_lens[i] = 0


def update_draft_inputs(
    grid_0,  # R
    grid_1,
    output_draft_tokens,  # [R, K], written at the current step
    output_draft_tokens_stride,
    next_input_hidden_states,  # [R, H], written
    next_input_hidden_states_stride,
    input_ids,  # [R], written
    positions,  # [R], advanced
    sample_src_positions,  # [R], advanced
    seq_lens,  # [R], advanced
    draft_tokens,  # [R]
    current_draft_step,  # [1]
    hidden_states,  # [R, H]
    hidden_states_stride,
    hidden_size,
    max_model_len,
    num_speculative_steps,
    BLOCK_SIZE,
    ADVANCE_DRAFT_POSITIONS,
):
    """Store a step's drafts and, unless it was the last step, make them the next step's inputs."""
    step = current_draft_step[0]
    for row in range(grid_0):
        output_draft_tokens[row * output_draft_tokens_stride + step] = draft_tokens[row]
        if step >= num_speculative_steps - 1:
            continue
        sample_src_positions[row] += 1
        input_ids[row] = draft_tokens[row]
        for i in range(hidden_size):
            hidden = hidden_states[row * hidden_states_stride + i]
            next_input_hidden_states[row * next_input_hidden_states_stride + i] = hidden
        if ADVANCE_DRAFT_POSITIONS:
            positions[row] = min(positions[row] + 1, max_model_len - 1)
            seq_lens[row] = min(seq_lens[row] + 1, max_model_len)


def prepare_standalone_prefill(
    grid_0,  # R
    grid_1,
    target_input_ids,  # [T]
    target_positions,  # [T]
    last_sampled,  # [M]
    idx_mapping,  # [R]
    out_input_ids,  # [T + R], written
    out_positions,  # [T + R], written
    last_token_indices,  # [M], written
    out_query_start_loc,  # [M + 1], written
    out_seq_lens,  # [M], written
    query_start_loc,  # [R + 1]
    seq_lens,  # [R]
    num_rejected,  # [R]
    max_num_reqs,
    max_model_len,
    BLOCK_SIZE,
):
    """The target's inputs with the newest token inserted after the accepted ones; rejected places get token 0."""
    for row in range(grid_0):
        start, end = query_start_loc[row], query_start_loc[row + 1]
        valid = end - start - num_rejected[row]
        out = start + row
        for i in range(end - start + 1):
            token = 0
            if i < valid:
                token = target_input_ids[start + i]
            elif i == valid:
                token = last_sampled[idx_mapping[row]]
            out_input_ids[out + i] = token
            out_positions[out + i] = min(target_positions[start] + i, max_model_len - 1)
        last_token_indices[row] = out + valid
        out_query_start_loc[row] = out
        out_seq_lens[row] = min(seq_lens[row] + 1, max_model_len)
    for i in range(grid_0, max_num_reqs + 1):
        out_query_start_loc[i] = query_start_loc[grid_0] + grid_0
    for i in range(grid_0, max_num_reqs):
        out_seq_lens[i] = 0
        last_token_indices[i] = 0
