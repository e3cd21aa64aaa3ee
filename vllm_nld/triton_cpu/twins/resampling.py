"""After rejection: sample from the residual distribution; also the rows that go into and come out of verification."""

import math

import numpy as np

from vllm_nld.triton_cpu.twins.noise import SECOND_HASH, noisy, prefix
from vllm_nld.triton_cpu.twins.pointers import NEG_INF, load


def gather_draft_sampled(
    grid_0,
    grid_1,
    draft_sampled,  # [N], written
    pos,  # [N], written
    input_ids,  # [T]
    positions,  # [T]
    logits_indices,  # [N]
    expanded_idx_mapping,  # [N]
    expanded_local_pos,  # [N]
    prefill_len,  # [M]
    num_logits,
    BLOCK_SIZE,
):
    """The input token and position of each logit row; -1 for a draft if the step starts inside the prefill."""
    for n in range(num_logits):
        token = logits_indices[n]
        place = expanded_local_pos[n]
        position = positions[token]
        placeholder = place > 0 and position - place < prefill_len[expanded_idx_mapping[n]]
        draft_sampled[n] = -1 if placeholder else input_ids[token]
        pos[n] = position


def resample(
    grid_0,  # R
    grid_1,  # blocks of BLOCK_SIZE tokens
    resampled_local_argmax,  # [R, blocks], written
    resampled_local_argmax_stride,
    resampled_local_max,  # [R, blocks], written
    resampled_local_max_stride,
    target_logits,  # [N, V], after temperature
    target_logits_stride,
    target_rejected_logsumexp,  # [R]
    draft_logits,  # [M, K, V] before temperature, or None
    draft_logits_stride_0,
    draft_logits_stride_1,
    draft_rejected_logsumexp,  # [R]
    rejected_step,  # [R] number of accepted drafts
    cu_num_logits,  # [R + 1]
    expanded_idx_mapping,  # [N]
    draft_sampled,  # [N]
    temp,  # [M]
    seed,  # [M]
    pos,  # [N]
    cumulative_log_p,  # [N] with USE_BLOCK_VERIFICATION
    contexts,
    contexts_stride,
    watermarking,
    watermarking_skip_mask,
    watermark_key_0,
    watermark_key_1,
    vocab_size,
    BLOCK_SIZE,
    HAS_DRAFT_LOGITS,
    USE_FP64,
    USE_BLOCK_VERIFICATION,
    CONTEXT_WIDTH,
    WATERMARK,
    DEDUPLICATE_CONTEXTS,
):
    """Sample the token after the accepted drafts: the winner of each vocabulary block of that row.

    All drafts accepted: sample from the target (the bonus token). One rejected: sample from max(p - q, 0), or without
    draft logits from p minus the rejected token. Greedy requests already have their token, except for the bonus token.
    """
    for row in range(grid_0):
        step = rejected_step[row]
        n = cu_num_logits[row] + step
        request = expanded_idx_mapping[n]
        temperature = np.float32(temp[request])
        bonus = n == cu_num_logits[row + 1] - 1
        if temperature == 0 and not bonus:
            continue
        rejected = -1 if bonus else draft_sampled[n + 1]
        low_row, high_row = prefix(seed[request], pos[n], 0), prefix(seed[request], pos[n], SECOND_HASH)
        joint = np.float32(0.0)
        if cumulative_log_p is not None and step > 0:
            joint = cumulative_log_p[n - 1]
        draft_row = request * draft_logits_stride_0 + step * draft_logits_stride_1
        for block in range(grid_1):
            best, winner = -np.inf, block * BLOCK_SIZE
            for token in range(block * BLOCK_SIZE, min((block + 1) * BLOCK_SIZE, vocab_size)):
                logit = load(target_logits, n * target_logits_stride + token)
                if draft_logits is not None:
                    if rejected >= 0:
                        logit = (logit - target_rejected_logsumexp[row]) + joint
                        draft = load(draft_logits, draft_row + token) / temperature - draft_rejected_logsumexp[row]
                        ratio = np.float32(math.exp(draft - logit))
                        logit = np.float32(logit + np.float32(math.log1p(-ratio))) if ratio < 1 else NEG_INF
                elif token == rejected:
                    logit = NEG_INF
                value = np.float64(logit)
                if temperature != 0:
                    value = noisy(logit, token, best, low_row, high_row, USE_FP64)
                if value > best:
                    best, winner = value, token
            resampled_local_argmax[row * resampled_local_argmax_stride + block] = winner
            resampled_local_max[row * resampled_local_max_stride + block] = best


vars(resample)["absent"] = ("contexts",)  # watermarking is left to the interpreter


def insert_resampled(
    grid_0,  # R
    grid_1,
    sampled,  # [R, K + 1], written
    sampled_stride,
    num_sampled,  # [R] number of accepted drafts when read; one more is written back
    resampled_local_argmax,  # [R, blocks]
    resampled_local_argmax_stride,
    resampled_local_max,  # [R, blocks]
    resampled_local_max_stride,
    resample_num_blocks,
    cu_num_logits,  # [R + 1]
    expanded_idx_mapping,  # [N]
    temp,  # [M]
    PADDED_RESAMPLE_NUM_BLOCKS,
):
    """Append the resampled token to the accepted drafts; a rejected greedy draft already has its replacement."""
    for row in range(grid_0):
        accepted = num_sampled[row]
        n = cu_num_logits[row] + accepted
        num_sampled[row] = accepted + 1
        if temp[expanded_idx_mapping[n]] == 0 and n != cu_num_logits[row + 1] - 1:
            continue
        best, winner = -np.inf, 0
        for block in range(resample_num_blocks):
            value = resampled_local_max[row * resampled_local_max_stride + block]
            if value > best:
                best, winner = value, block
        sampled[row * sampled_stride + accepted] = resampled_local_argmax[row * resampled_local_argmax_stride + winner]


def flatten_sampled(
    grid_0,  # R
    grid_1,
    flat_sampled,  # [N], written
    sampled,  # [R, K + 1]
    sampled_stride,
    num_sampled,  # [R]
    cu_num_logits,  # [R + 1]
):
    """Write each request's sampled tokens at its logit rows."""
    for row in range(grid_0):
        for i in range(num_sampled[row]):
            flat_sampled[cu_num_logits[row] + i] = sampled[row * sampled_stride + i]
