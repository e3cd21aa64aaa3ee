"""After sampling: how many tokens each request got, and the resulting request state."""


def count_sampled_and_rejected(
    grid_0,  # R
    grid_1,
    num_sampled,  # [R], read and written
    num_rejected,  # [R], written
    seq_lens,  # [R]
    cu_num_logits,  # [R + 1]
    idx_mapping,  # [R]
    prefill_len,  # [M]
):
    """Rejected = logit rows that gave no token. A request still in its prefill has 0 sampled and 0 rejected."""
    for row in range(grid_0):
        if seq_lens[row] < prefill_len[idx_mapping[row]]:
            num_sampled[row] = 0
            num_rejected[row] = 0
        else:
            num_rejected[row] = cu_num_logits[row + 1] - cu_num_logits[row] - num_sampled[row]


def post_update(
    grid_0,  # R
    grid_1,
    idx_mapping,  # [R], negative rows are skipped
    num_computed_tokens,  # [M], written
    last_sampled_tokens,  # [M], written
    output_bin_counts,  # [M, V] or None, written
    output_bin_counts_stride,
    sampled_tokens,  # [R, K + 1]
    sampled_tokens_stride,
    num_sampled,  # [R]
    num_rejected,  # [R]
    query_start_loc,  # [R + 1] or None
    all_token_ids,  # [M, length], written
    all_token_ids_stride,
    total_len,  # [M], written
    draft_tokens=None,  # [R, K] or None
    draft_tokens_out=None,  # [M, K], written
    num_draft_tokens=0,  # K
):
    """Append each request's sampled tokens, count them for penalties, and advance its number of computed tokens by
    the query less the rejected ones. Keep its drafts, if they come from another pipeline stage."""
    for row in range(grid_0):
        request = idx_mapping[row]
        if request < 0:
            continue
        if draft_tokens is not None:
            for i in range(num_draft_tokens):
                draft_tokens_out[request * num_draft_tokens + i] = draft_tokens[row * num_draft_tokens + i]
        sampled = num_sampled[row]
        length = total_len[request]
        for i in range(sampled):
            token = sampled_tokens[row * sampled_tokens_stride + i]
            all_token_ids[request * all_token_ids_stride + length + i] = token
            if output_bin_counts is not None:
                output_bin_counts[request * output_bin_counts_stride + token] += 1
        if sampled > 0:
            last_sampled_tokens[request] = sampled_tokens[row * sampled_tokens_stride + sampled - 1]
            total_len[request] = length + sampled
        advance = -num_rejected[row]
        if query_start_loc is not None:
            advance += query_start_loc[row + 1] - query_start_loc[row]
        num_computed_tokens[request] += advance


def advance_computed_tokens(
    grid_0,  # R
    grid_1,
    idx_mapping,  # [R]
    num_computed_tokens,  # [M], written
    query_start_loc,  # [R + 1]
):
    """Count each request's query as computed."""
    for row in range(grid_0):
        num_computed_tokens[idx_mapping[row]] += query_start_loc[row + 1] - query_start_loc[row]
