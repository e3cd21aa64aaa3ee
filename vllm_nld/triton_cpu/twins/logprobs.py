"""Log probabilities and ranks of selected tokens, and the selection itself."""

import math

import numpy as np

from vllm_nld.triton_cpu.twins.pointers import NEG_INF, load


def log_softmax_at(
    grid_0,  # N
    grid_1,
    output,  # [N, topk] float32, written
    logits,  # [N, V]
    logits_stride,
    topk_ids,  # [N, topk]
    topk_ids_stride,
    topk,
    vocab_size,
    BLOCK_SIZE,
    TOPK_BLOCK_SIZE,
):
    """The log probabilities of `topk_ids` in each row."""
    for n in range(grid_0):
        row = n * logits_stride
        top = NEG_INF
        for token in range(vocab_size):
            top = max(top, load(logits, row + token))
        total = 0.0
        for token in range(vocab_size):
            total += math.exp(load(logits, row + token) - top)
        norm = np.float32(math.log(total))
        for i in range(topk):
            output[n * topk + i] = load(logits, row + topk_ids[n * topk_ids_stride + i]) - top - norm


def ranks(
    grid_0,  # N
    grid_1,
    output,  # [N], written
    logits,  # [N, V]
    logits_stride,
    token_ids,  # [N]
    vocab_size,
    BLOCK_SIZE,
):
    """How many tokens of each row are at least as likely as the row's own token, including itself."""
    for n in range(grid_0):
        row = n * logits_stride
        own = load(logits, row + token_ids[n])
        count = 0
        for token in range(vocab_size):
            if load(logits, row + token) >= own:
                count += 1
        output[n] = count


def fill_token_ids(
    grid_0,  # N
    grid_1,
    out_token_ids,  # [N, 1 + columns] int64, written
    out_token_ids_stride,
    out_valid_mask,  # [N, 1 + columns] bool, written
    out_valid_mask_stride,
    sampled_token_ids,  # [N]
    topk_indices,  # [N, NUM_TOPK], not read if NUM_TOPK is 0
    topk_indices_stride,
    expanded_idx_mapping,  # [N]
    num_per_req_token_ids,  # [M], 0 if the request lists no tokens
    per_req_token_ids,  # [M, most]
    per_req_token_ids_stride,
    NUM_TOPK,
    PADDED_COLS,
):
    """The tokens to report per row: the sampled one, then those the request lists, or else the most likely ones."""
    for n in range(grid_0):
        ids, valid = n * out_token_ids_stride, n * out_valid_mask_stride
        out_token_ids[ids] = sampled_token_ids[n]
        out_valid_mask[valid] = 1
        request = expanded_idx_mapping[n]
        named = num_per_req_token_ids[request]
        for i in range(min(named if named > 0 else NUM_TOPK, PADDED_COLS)):
            if named > 0:
                token = per_req_token_ids[request * per_req_token_ids_stride + i]
            else:
                token = topk_indices[n * topk_indices_stride + i]
            out_token_ids[ids + 1 + i] = token
            out_valid_mask[valid + 1 + i] = 1


def prompt_token_ids(
    grid_0,  # R
    grid_1,
    prompt_logprobs_token_ids,  # [T], written
    query_start_loc,  # [R + 1]
    idx_mapping,  # [R]
    num_computed_tokens,  # [M]
    all_token_ids,  # [M, length]
    all_token_ids_stride,
    BLOCK_SIZE,
):
    """The token that follows each scheduled token."""
    for row in range(grid_0):
        request = idx_mapping[row]
        start = query_start_loc[row]
        following = request * all_token_ids_stride + num_computed_tokens[request] + 1
        for i in range(query_start_loc[row + 1] - start):
            prompt_logprobs_token_ids[start + i] = all_token_ids[following + i]


def compact_support(
    grid_0,  # R x ROWS_PER_REQUEST
    grid_1,
    logits,  # [N, V]
    logits_row_stride,
    logits_col_stride,
    cu_num_logits,  # [R + 1]
    num_sampled_tokens,  # [R]
    token_ids,  # [R x rows, max_num_kept], written
    token_ids_row_stride,
    packed_mask,  # [R x rows, V / 8] uint8, written
    packed_mask_row_stride,
    counts,  # [R x rows], written
    vocab_size,
    max_num_kept,
    ROWS_PER_REQUEST,
    BLOCK_SIZE,
):
    """The tokens with a finite logit in each sampled row: their number, the first max_num_kept ids, and a bit mask."""
    for out in range(grid_0):
        request, place = out // ROWS_PER_REQUEST, out % ROWS_PER_REQUEST
        count = 0
        if place < num_sampled_tokens[request]:
            row = (cu_num_logits[request] + place) * logits_row_stride
            for byte in range((vocab_size + 7) // 8):
                bits = 0
                for token in range(byte * 8, min(byte * 8 + 8, vocab_size)):
                    if np.isfinite(load(logits, row + token * logits_col_stride)):
                        bits |= 1 << (token - byte * 8)
                        if count < max_num_kept:
                            token_ids[out * token_ids_row_stride + count] = token
                        count += 1
                packed_mask[out * packed_mask_row_stride + byte] = bits
        counts[out] = count
