"""Block verification (Sun et al., 2024): the joint acceptance ratios that `rejection.reject` uses."""

import math

import numpy as np

from vllm_nld.triton_cpu.twins.pointers import load
from vllm_nld.triton_cpu.twins.rejection import is_bonus, log_sum_exp


def cumulative_ratios(
    grid_0,  # R
    grid_1,
    cumulative_log_p,  # [N], written
    target_logits,  # [N, V]
    target_logits_stride,
    target_local_max,  # [N, blocks]
    target_local_max_stride,
    target_local_sumexp,
    target_local_sumexp_stride,
    draft_sampled,  # [N]
    draft_logits,  # [M, K, V] or None
    draft_logits_stride_0,
    draft_logits_stride_1,
    draft_local_max,
    draft_local_max_stride,
    draft_local_sumexp,
    draft_local_sumexp_stride,
    cu_num_logits,  # [R + 1]
    idx_mapping,  # [R]
    temp,  # [M]
    vocab_num_blocks,
    PADDED_VOCAB_NUM_BLOCKS,
    HAS_DRAFT_LOGITS,
):
    """The log of the running ratio p / q after each draft, clamped to 0 at every step; a -1 draft keeps the last
    value."""
    for row in range(grid_0):
        request = idx_mapping[row]
        start = cu_num_logits[row]
        temperature = np.float32(temp[request])
        if temperature == 0:
            continue
        total = np.float32(0.0)
        for i in range(cu_num_logits[row + 1] - start - 1):
            n = start + i
            draft = draft_sampled[n + 1]
            if draft >= 0:
                lse = log_sum_exp(
                    target_local_max,
                    target_local_sumexp,
                    n * target_local_max_stride,
                    n * target_local_sumexp_stride,
                    vocab_num_blocks,
                )
                ratio = load(target_logits, n * target_logits_stride + draft) - lse
                if draft_logits is not None:
                    lse = log_sum_exp(
                        draft_local_max,
                        draft_local_sumexp,
                        n * draft_local_max_stride,
                        n * draft_local_sumexp_stride,
                        vocab_num_blocks,
                    )
                    at = request * draft_logits_stride_0 + i * draft_logits_stride_1 + draft
                    ratio -= load(draft_logits, at) / temperature - lse
                total = min(np.float32(total + ratio), np.float32(0.0))
            cumulative_log_p[n] = total


def residual_mass(
    grid_0,  # N
    grid_1,  # blocks of BLOCK_SIZE tokens
    local_residual_mass,  # [N, blocks], written
    local_residual_mass_stride,
    cumulative_log_p,  # [N]
    target_logits,  # [N, V]
    target_logits_stride,
    target_local_max,  # [N, blocks]
    target_local_max_stride,
    target_local_sumexp,
    target_local_sumexp_stride,
    draft_logits,  # [M, K, V]
    draft_logits_stride_0,
    draft_logits_stride_1,
    draft_local_max,
    draft_local_max_stride,
    draft_local_sumexp,
    draft_local_sumexp_stride,
    draft_sampled,  # [N]
    expanded_idx_mapping,  # [N]
    expanded_local_pos,  # [N]
    temp,  # [M]
    vocab_size,
    vocab_num_blocks,
    BLOCK_SIZE,
    PADDED_VOCAB_NUM_BLOCKS,
    num_speculative_steps=0,  # as in `rejection.logits_stats`
    num_logits=None,
):
    """Per vocabulary block: sum of max(ratio x p - q, 0) for each row between its request's first and last."""
    for n in range(grid_0 - 1):
        step = expanded_local_pos[n]
        request = expanded_idx_mapping[n]
        temperature = np.float32(temp[request])
        if step == 0 or draft_sampled[n + 1] < 0 or temperature == 0:
            continue
        if num_logits is not None:
            if is_bonus(expanded_local_pos, n, num_logits):
                continue
        elif step >= num_speculative_steps:
            continue
        target_lse = log_sum_exp(
            target_local_max,
            target_local_sumexp,
            n * target_local_max_stride,
            n * target_local_sumexp_stride,
            vocab_num_blocks,
        )
        draft_lse = log_sum_exp(
            draft_local_max,
            draft_local_sumexp,
            n * draft_local_max_stride,
            n * draft_local_sumexp_stride,
            vocab_num_blocks,
        )
        ratio = np.float32(math.exp(cumulative_log_p[n - 1]))
        row = n * target_logits_stride
        draft_row = request * draft_logits_stride_0 + step * draft_logits_stride_1
        for block in range(grid_1):
            total = 0.0
            for token in range(block * BLOCK_SIZE, min((block + 1) * BLOCK_SIZE, vocab_size)):
                p = np.float32(math.exp(load(target_logits, row + token) - target_lse))
                q = np.float32(math.exp(load(draft_logits, draft_row + token) / temperature - draft_lse))
                total += float(max(ratio * p - q, np.float32(0.0)))
            local_residual_mass[n * local_residual_mass_stride + block] = total
