"""The thinking budget: force the end-of-thinking marker once a request has used up its thinking tokens."""

from numba import njit

from vllm_nld.triton_cpu.twins.pointers import store


@njit
def token_at(all_token_ids, tokens, input_ids, first_draft, total, position):
    """The token at a position: a committed token, or past those a draft of the request's earlier rows."""
    if position < total:
        return all_token_ids[tokens + position]
    return input_ids[first_draft + position - total]


@njit
def occurs(all_token_ids, tokens, input_ids, first_draft, total, position, marker, length):
    """Whether the marker's first `length` tokens occur at the position."""
    for i in range(length):
        if token_at(all_token_ids, tokens, input_ids, first_draft, total, position + i) != marker[i]:
            return False
    return True


def update_marker_cache(
    grid_0,  # requests
    grid_1,
    req_ids,  # [requests]
    thinking_token_budget,  # [M], negative for none
    all_token_ids,  # [M, length]
    all_token_ids_stride,
    total_len,  # [M]
    cached_last_start,  # [M] last position of the start marker, -1 for none; read and written
    cached_last_end,  # [M] last position of the end marker, likewise
    cached_scan_pos,  # [M] where to resume scanning
    reasoning_start_token_ids,  # [START_LEN]
    natural_reasoning_end_token_ids,  # [NATURAL_END_LEN]
    START_LEN,
    NATURAL_END_LEN,
    MAX_LEN,
    BLOCK,
):
    """Find the last start and end markers among the committed tokens, resuming from the last scan.

    A first scan walks backward in blocks and stops at the first block that has either, because only the later marker
    matters.
    """
    for row in range(grid_0):
        request = req_ids[row]
        if thinking_token_budget[request] < 0:
            continue
        tokens = request * all_token_ids_stride
        total = total_len[request]
        begin = cached_scan_pos[request]
        start, end = cached_last_start[request], cached_last_end[request]
        if begin > total:
            begin, start, end = 0, -1, -1
        cold = begin == 0 and start < 0 and end < 0
        stop = total
        while True:
            if cold:
                begin = max(stop - BLOCK, 0)
            for i in range(begin, stop):
                if i + START_LEN <= total and occurs(
                    all_token_ids, tokens, all_token_ids, 0, total, i, reasoning_start_token_ids, START_LEN
                ):
                    start = i
                if i + NATURAL_END_LEN <= total and occurs(
                    all_token_ids, tokens, all_token_ids, 0, total, i, natural_reasoning_end_token_ids, NATURAL_END_LEN
                ):
                    end = i
            if not cold or begin == 0 or start >= 0 or end >= 0:
                break
            stop = begin
        cached_last_start[request] = start
        cached_last_end[request] = end
        cached_scan_pos[request] = max(total - (MAX_LEN - 1), 0)


def apply_budget(
    grid_0,  # N
    grid_1,
    logits,  # [N, V], written
    logits_stride,
    expanded_idx_mapping,  # [N]
    thinking_token_budget,  # [M], negative for none
    all_token_ids,  # [M, length]
    all_token_ids_stride,
    total_len,  # [M]
    input_ids,  # [N] the input token of each row
    expanded_local_pos,  # [N]
    cached_last_start,  # [M]
    cached_last_end,  # [M]
    reasoning_start_token_ids,  # [START_LEN]
    natural_reasoning_end_token_ids,  # [NATURAL_END_LEN]
    reasoning_end_token_ids,  # [END_LEN] the marker to force
    START_LEN,
    NATURAL_END_LEN,
    END_LEN,
):
    """In rows that have used up their budget, set the logit of the end marker's next token to 1e9."""
    for n in range(grid_0):
        request = expanded_idx_mapping[n]
        budget = thinking_token_budget[request]
        if budget < 0:
            continue
        tokens = request * all_token_ids_stride
        drafts = expanded_local_pos[n]
        first_draft = n - drafts + 1
        total = total_len[request]
        length = total + drafts
        start, end = cached_last_start[request], cached_last_end[request]
        for i in range(max(total - START_LEN + 1, 0), length - START_LEN + 1):
            if occurs(all_token_ids, tokens, input_ids, first_draft, total, i, reasoning_start_token_ids, START_LEN):
                start = i
        for i in range(max(total - NATURAL_END_LEN + 1, 0), length - NATURAL_END_LEN + 1):
            if occurs(
                all_token_ids,
                tokens,
                input_ids,
                first_draft,
                total,
                i,
                natural_reasoning_end_token_ids,
                NATURAL_END_LEN,
            ):
                end = i
        if start < 0 or start <= end or length - start - START_LEN < budget:
            continue
        done = 0
        for prefix in range(1, min(END_LEN - 1, length) + 1):
            if occurs(
                all_token_ids, tokens, input_ids, first_draft, total, length - prefix, reasoning_end_token_ids, prefix
            ):
                done = prefix
        store(logits, n * logits_stride + reasoning_end_token_ids[done], 1.0e9)
