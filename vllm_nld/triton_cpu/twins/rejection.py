"""Draft verification: which drafts the target accepts."""

import math

import numpy as np
from numba import njit

from vllm_nld.triton_cpu.twins.noise import seed_of_step, uniform32
from vllm_nld.triton_cpu.twins.pointers import NEG_INF, load
from vllm_nld.triton_cpu.twins.sampling import draw_block


@njit
def block_stats(logits, row, begin, end, scale):
    """(max, sum of exp(logit - max)) of tokens begin…end of a row, logits divided by `scale`; (-inf, 0) if empty."""
    top = NEG_INF
    for i in range(row + begin, row + end):
        top = max(top, load(logits, i) / scale)
    total = 0.0
    if top > NEG_INF:
        for i in range(row + begin, row + end):
            total += math.exp(load(logits, i) / scale - top)
    return top, np.float32(total)


@njit
def log_sum_exp(maxima, sums, maxima_at, sums_at, blocks):
    """A row's log-sum-exp, from its blocks' statistics."""
    top = NEG_INF
    for i in range(blocks):
        top = max(top, maxima[maxima_at + i])
    total = 0.0
    for i in range(blocks):
        total += sums[sums_at + i] * math.exp(maxima[maxima_at + i] - top)
    return np.float32(top + np.float32(math.log(np.float32(total))))


@njit
def is_bonus(local_pos, n, num_logits):
    """Whether row n is its request's last one, which no draft follows."""
    return n + 1 >= num_logits or local_pos[n + 1] == 0


def logits_stats(
    grid_0,  # N
    grid_1,  # blocks of BLOCK_SIZE tokens
    target_local_argmax,  # [N, blocks], written for greedy requests
    target_local_argmax_stride,
    target_local_max,  # [N, blocks], written
    target_local_max_stride,
    target_local_sumexp,  # [N, blocks], written for sampled requests
    target_local_sumexp_stride,
    draft_local_max,  # [N, blocks], written for sampled requests with draft logits
    draft_local_max_stride,
    draft_local_sumexp,  # [N, blocks], as draft_local_max
    draft_local_sumexp_stride,
    target_logits,  # [N, V], after temperature
    target_logits_stride,
    draft_logits,  # [M, K, V] before temperature, or None
    draft_logits_stride_0,
    draft_logits_stride_1,
    expanded_idx_mapping,  # [N]
    expanded_local_pos,  # [N]
    temp,  # [M]
    vocab_size,
    BLOCK_SIZE,
    HAS_DRAFT_LOGITS,
    num_speculative_steps=0,  # K up to vLLM 0.32, which skips only the row after K drafts
    num_logits=None,  # N from vLLM 0.33 on, which skips the row after any request's last draft
):
    """Per vocabulary block of each row followed by a draft: the argmax if greedy, else max and sum of exponentials."""
    for n in range(grid_0):
        step = expanded_local_pos[n]
        if num_logits is not None:
            if is_bonus(expanded_local_pos, n, num_logits):
                continue
        elif step >= num_speculative_steps:
            continue
        request = expanded_idx_mapping[n]
        temperature = np.float32(temp[request])
        row = n * target_logits_stride
        for block in range(grid_1):
            begin, end = block * BLOCK_SIZE, min((block + 1) * BLOCK_SIZE, vocab_size)
            if temperature == 0:
                value, token = draw_block(target_logits, row, begin, end, np.float32(1.0), False, False, 0, 0)
                target_local_argmax[n * target_local_argmax_stride + block] = token
                target_local_max[n * target_local_max_stride + block] = value
                continue
            top, total = block_stats(target_logits, row, begin, end, np.float32(1.0))
            target_local_max[n * target_local_max_stride + block] = top
            target_local_sumexp[n * target_local_sumexp_stride + block] = total
            if draft_logits is not None:
                draft_row = request * draft_logits_stride_0 + step * draft_logits_stride_1
                top, total = block_stats(draft_logits, draft_row, begin, end, temperature)
                draft_local_max[n * draft_local_max_stride + block] = top
                draft_local_sumexp[n * draft_local_sumexp_stride + block] = total


def reject(
    grid_0,  # R
    grid_1,
    sampled,  # [R, K + 1], written
    sampled_stride,
    rejected_steps,  # [R] number of accepted drafts, written
    target_rejected_logsumexp,  # [R], written
    draft_rejected_logsumexp,  # [R], written
    target_logits,  # [N, V]
    target_logits_stride,
    target_local_argmax,  # [N, blocks]
    target_local_argmax_stride,
    target_local_max,
    target_local_max_stride,
    target_local_sumexp,
    target_local_sumexp_stride,
    draft_sampled,  # [N] a row's input token, the draft that row n - 1 verifies; -1 is always rejected
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
    seed,  # [M]
    pos,  # [N]
    synthetic_conditional_rates,  # [K] with SYNTHETIC_MODE
    cumulative_log_p,  # [N] with USE_BLOCK_VERIFICATION
    local_residual_mass,  # [N, blocks] with USE_BLOCK_VERIFICATION and draft logits
    local_residual_mass_stride,
    vocab_num_blocks,
    PADDED_VOCAB_NUM_BLOCKS,
    HAS_DRAFT_LOGITS,
    SYNTHETIC_MODE,
    USE_BLOCK_VERIFICATION,
    fly_entropy=None,  # [N] with FLY_WINDOW_SIZE
    fly_entropy_threshold=0.0,
    FLY_WINDOW_SIZE=0,
    STEP_SEEDS=False,  # block verification draws each step's number from a seed of its own
):
    """Accept drafts up to the first rejection, and store that row's log-sum-exps for resampling.

    Greedy: accept a draft if it is the target's argmax, otherwise output the argmax. Sampled: accept with probability
    p / q (Leviathan et al., 2023), or jointly over the block (Sun et al., 2024). Synthetic: accept at fixed rates.
    """
    blocks = vocab_num_blocks
    for row in range(grid_0):
        request = idx_mapping[row]
        start = cu_num_logits[row]
        drafts = cu_num_logits[row + 1] - start - 1
        temperature = np.float32(temp[request])
        greedy = temperature == 0
        accepted = 0
        target_lse = draft_lse = np.float32(0.0)
        for i in range(drafts):
            n = start + i
            draft = draft_sampled[n + 1]
            valid = draft >= 0
            if not valid and not greedy:
                break
            draft = max(draft, 0)
            step_seed = np.int64(seed[request])
            if STEP_SEEDS and USE_BLOCK_VERIFICATION:
                step_seed = seed_of_step(step_seed, i)
            u = uniform32(step_seed, pos[n])
            if greedy:
                best, winner = NEG_INF, 0
                for block in range(blocks):
                    if target_local_max[n * target_local_max_stride + block] > best:
                        best, winner = target_local_max[n * target_local_max_stride + block], block
                argmax = target_local_argmax[n * target_local_argmax_stride + winner]
                accept = argmax == draft
                if synthetic_conditional_rates is not None:
                    accept = u < synthetic_conditional_rates[i]
                accept = accept and valid
                sampled[row * sampled_stride + i] = draft if accept else argmax
            elif USE_BLOCK_VERIFICATION:
                if cumulative_log_p is not None:
                    joint = np.float32(math.exp(cumulative_log_p[n]))
                    enough = joint
                    following = draft_sampled[n + 2] if i < drafts - 1 else -1
                    if following >= 0:
                        mass = 0.0
                        if local_residual_mass is not None:
                            for block in range(blocks):
                                mass += local_residual_mass[(n + 1) * local_residual_mass_stride + block]
                        else:
                            lse = log_sum_exp(
                                target_local_max,
                                target_local_sumexp,
                                (n + 1) * target_local_max_stride,
                                (n + 1) * target_local_sumexp_stride,
                                blocks,
                            )
                            logit = load(target_logits, (n + 1) * target_logits_stride + following)
                            mass = float(joint * (np.float32(1.0) - np.float32(math.exp(logit - lse))))
                        rest = np.float32(np.float32(mass) + np.float32(1.0) - joint)
                        enough = np.float32(mass) / rest if rest > 0 else np.float32(1.0)
                    if u <= enough:
                        accepted = i + 1
                sampled[row * sampled_stride + i] = draft
                continue
            else:
                target_lse = log_sum_exp(
                    target_local_max,
                    target_local_sumexp,
                    n * target_local_max_stride,
                    n * target_local_sumexp_stride,
                    blocks,
                )
                log_ratio = load(target_logits, n * target_logits_stride + draft) - target_lse
                draft_logprob = np.float32(0.0)
                if draft_logits is not None:
                    draft_lse = log_sum_exp(
                        draft_local_max,
                        draft_local_sumexp,
                        n * draft_local_max_stride,
                        n * draft_local_sumexp_stride,
                        blocks,
                    )
                    at = request * draft_logits_stride_0 + i * draft_logits_stride_1 + draft
                    draft_logprob = load(draft_logits, at) / temperature - draft_lse
                accept = log_ratio > np.float32(math.log(u)) + draft_logprob
                if synthetic_conditional_rates is not None:
                    accept = u < synthetic_conditional_rates[i]
                sampled[row * sampled_stride + i] = draft
            if not accept:
                break
            accepted += 1
        if USE_BLOCK_VERIFICATION and not greedy and accepted < drafts:
            n = start + accepted
            target_lse = log_sum_exp(
                target_local_max,
                target_local_sumexp,
                n * target_local_max_stride,
                n * target_local_sumexp_stride,
                blocks,
            )
            if draft_logits is not None:
                draft_lse = log_sum_exp(
                    draft_local_max,
                    draft_local_sumexp,
                    n * draft_local_max_stride,
                    n * draft_local_sumexp_stride,
                    blocks,
                )
        rejected_steps[row] = accepted
        target_rejected_logsumexp[row] = target_lse
        draft_rejected_logsumexp[row] = draft_lse


vars(reject)["absent"] = ("fly_entropy",)  # lossy acceptance is left to the interpreter
