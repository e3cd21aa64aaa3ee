"""N-gram drafting: the tokens that followed an earlier occurrence of the last tokens."""


def scan(
    grid_0,  # R
    grid_1,  # blocks of BLOCK_L positions
    token_ids,  # [M, length]
    token_ids_stride,
    idx_mapping,  # [R]
    total_len,  # [M]
    num_sampled,  # [R]
    scratch,  # [R, blocks] int64, written
    scratch_stride,
    L,
    MIN_N,
    MAX_N,
    MAX_N_PO2,
    BLOCK_L,
):
    """In each block of positions, the longest earlier occurrence of the sequence's last n tokens, MIN_N <= n <= MAX_N.

    The score is n x (L + 1) + position + 1, so the longest wins and ties go to the latest; 0 means none.
    """
    for row in range(grid_0):
        request = idx_mapping[row]
        tokens = request * token_ids_stride
        length = total_len[request]
        for block in range(grid_1):
            best = 0
            if num_sampled[row] > 0 and length >= MIN_N:
                for position in range(block * BLOCK_L, min((block + 1) * BLOCK_L, length - MIN_N)):
                    for n in range(MIN_N, MAX_N + 1):
                        if position + n >= length:
                            break
                        matches = True
                        for i in range(n):
                            if token_ids[tokens + position + i] != token_ids[tokens + length - n + i]:
                                matches = False
                                break
                        if matches:
                            best = max(best, n * (L + 1) + position + 1)
            scratch[row * scratch_stride + block] = best


def finalize(
    grid_0,  # R
    grid_1,
    token_ids,  # [M, length]
    token_ids_stride,
    idx_mapping,  # [R]
    total_len,  # [M]
    num_sampled,  # [R]
    last_sampled,  # [M]
    scratch,  # [R, blocks]
    scratch_stride,
    drafts,  # [R, K], written
    L,
    N_BLOCKS,
    K,
    K_PO2,
    N_BLOCKS_PO2,
):
    """The K tokens after the best occurrence, padded with the last sampled token."""
    for row in range(grid_0):
        request = idx_mapping[row]
        best = 0
        for block in range(N_BLOCKS):
            best = max(best, scratch[row * scratch_stride + block])
        start = 0
        available = 0
        if best > 0 and num_sampled[row] > 0:
            n = (best - 1) // (L + 1)
            start = (best - 1) - n * (L + 1) + n
            available = max(total_len[request] - start, 0)
        for i in range(K):
            if i < available:
                at = min(start + i, L - 1)
                drafts[row * K + i] = token_ids[request * token_ids_stride + at]
            else:
                drafts[row * K + i] = last_sampled[request]
