"""Grammar bitmasks, and the count of NaN logits."""

from vllm_nld.triton_cpu.twins.pointers import forbid, load


def apply_grammar_bitmask(
    grid_0,  # masks
    grid_1,
    logits,  # [N, V], written
    logits_stride,
    logits_indices,  # [masks] request row x MASK_STRIDE + index within the request's logit rows
    cu_num_logits,  # [R + 1]
    bitmask,  # [masks, V / 32] int32, one bit per token, 1 if allowed
    bitmask_stride,
    vocab_size,
    MASK_STRIDE,
    BLOCK_SIZE,
):
    """Forbid the tokens whose bit is 0 in each mask's logit row; a mask for a row past the request's is ignored."""
    for mask in range(grid_0):
        request, place = logits_indices[mask] // MASK_STRIDE, logits_indices[mask] % MASK_STRIDE
        first = cu_num_logits[request]
        if place >= cu_num_logits[request + 1] - first:
            continue
        row = (first + place) * logits_stride
        for word in range((vocab_size + 31) // 32):
            bits = bitmask[mask * bitmask_stride + word] if word < bitmask_stride else 0
            if bits != -1:
                for token in range(word * 32, min(word * 32 + 32, vocab_size)):
                    if (bits >> (token - word * 32)) & 1 == 0:
                        forbid(logits, row + token)


def count_nans(
    grid_0,  # N
    grid_1,
    logits,  # [N, V]
    logits_stride,
    num_nans,  # [N], written
    vocab_size,
    BLOCK_SIZE,
):
    """The number of NaN logits in each row."""
    for row in range(grid_0):
        count = 0
        for i in range(row * logits_stride, row * logits_stride + vocab_size):
            value = load(logits, i)
            if value != value:
                count += 1
        num_nans[row] = count
