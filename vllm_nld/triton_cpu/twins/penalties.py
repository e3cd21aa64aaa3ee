"""Repetition, frequency and presence penalties, and the token counts they need."""

import numpy as np

from vllm_nld.triton_cpu.twins.pointers import load, store


def apply_penalties(
    grid_0,  # N
    grid_1,
    logits,  # [N, V], read and written
    logits_stride,
    expanded_idx_mapping,  # [N]
    token_ids,  # [N] the input token of each row
    expanded_local_pos,  # [N] the row's index within its request's rows
    repetition_penalty,  # [M], 1 for none
    frequency_penalty,  # [M], 0 for none
    presence_penalty,  # [M], 0 for none
    prompt_bin_mask,  # [M, V / 32] int32, one bit per token, 1 if it occurs in the prompt
    prompt_bin_mask_stride,
    output_bin_counts,  # [M, V]
    output_bin_counts_stride,
    vocab_size,
    BLOCK_SIZE,
):
    """Penalize tokens seen before each row: in the output, in the drafts of the request's earlier rows and, for
    repetition only, in the prompt. The repetition penalty divides positive logits and multiplies the others."""
    one = np.float32(1.0)
    for row in range(grid_0):
        request = expanded_idx_mapping[row]
        repetition, frequency, presence = (
            repetition_penalty[request],
            frequency_penalty[request],
            presence_penalty[request],
        )
        if repetition == 1 and frequency == 0 and presence == 0:
            continue
        drafts = expanded_local_pos[row]
        first = row - drafts + 1
        counts = request * output_bin_counts_stride
        prompt = request * prompt_bin_mask_stride
        for token in range(vocab_size):
            count = output_bin_counts[counts + token]
            for i in range(first, first + drafts):
                count += np.int32(token_ids[i] == token)
            logit = load(logits, row * logits_stride + token)
            if repetition != 1:
                seen = count > 0 or (prompt_bin_mask[prompt + token // 32] >> (token % 32)) & 1
                scale = repetition if seen else one
                logit *= one / scale if logit > 0 else scale
            logit -= frequency * np.float32(count)
            logit -= presence * np.float32(count > 0)
            store(logits, row * logits_stride + token, logit)


def count_tokens(
    grid_0,  # requests
    grid_1,  # blocks of BLOCK_SIZE tokens
    expanded_idx_mapping,  # [requests]
    all_token_ids,  # [M, length]
    all_token_ids_stride,
    prompt_len,  # [M]
    prefill_len,  # [M], exceeds prompt_len if a request resumes with output
    prompt_bin_mask,  # [M, V / 32] int32, zeroed by the caller, written
    prompt_bin_mask_stride,
    output_bin_counts,  # [M, V], zeroed by the caller, written
    output_bin_counts_stride,
    BLOCK_SIZE,
):
    """Mark the tokens of each prompt, and count the output tokens of resumed requests."""
    for row in range(grid_0):
        request = expanded_idx_mapping[row]
        tokens = request * all_token_ids_stride
        for i in range(min(prefill_len[request], grid_1 * BLOCK_SIZE)):
            token = all_token_ids[tokens + i]
            if i < prompt_len[request]:
                word = request * prompt_bin_mask_stride + token // 32
                prompt_bin_mask[word] |= np.int32(1 << (token % 32))
            else:
                output_bin_counts[request * output_bin_counts_stride + token] += 1
