"""Sampling a token from each row: temperature, min-p and Gumbel-max."""

import math

import numpy as np
from numba import njit

from vllm_nld.triton_cpu.twins.noise import DRAFT_SALT, SECOND_HASH, noisy, prefix, seed_of_step
from vllm_nld.triton_cpu.twins.pointers import NEG_INF, float_to_bits, forbid, load, store

CHUNK = 256  # tokens per vectorised loop
NO_KEY = np.int32(-(2**31))
NEG_INF_KEY = np.int32(0x807FFFFF - 2**32)  # `key` of -inf


@njit(inline="always")
def key(value):
    """Map a float32 to an int32 that sorts the same way. NaN sorts below everything; both zeros are equal."""
    bits = np.int32(float_to_bits(value + np.float32(0.0)))
    ordered = np.int32(bits ^ np.int32((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    return ordered if value == value else NO_KEY


@njit
def greatest(logits, row, begin, end):
    """(value, token) of the greatest among tokens begin…end of a row; ties go to the first; (-inf, begin) if none.

    Compares integers because the compiler can reorder, and so vectorise, an integer maximum but not a float one.
    """
    best, place = NEG_INF_KEY, begin
    for chunk in range(begin, end, CHUNK):
        top = NO_KEY
        for i in range(row + chunk, row + min(chunk + CHUNK, end)):
            top = max(top, key(load(logits, i)))
        if top > best:
            best, place = top, chunk
    if best == NEG_INF_KEY:
        return -np.inf, begin
    while key(load(logits, row + place)) != best:
        place += 1
    return np.float64(load(logits, row + place)), place


@njit
def draw_block(logits, row, begin, end, scale, random, use_fp64, seed, position):
    """(value, token) of the winner among tokens begin…end of the row starting at element `row`; ties go to the first.

    Logits are first divided by `scale` in float32; `random` adds Gumbel noise. NaN never wins; (-inf, begin) if none.
    """
    if not random:
        return greatest(logits, row, begin, end)
    best, winner = -np.inf, begin
    low_row, high_row = prefix(seed, position, 0), prefix(seed, position, SECOND_HASH)
    for token in range(begin, end):
        value = noisy(load(logits, row + token) / scale, token, best, low_row, high_row, use_fp64)
        if value > best:
            best, winner = value, token
    return best, winner


def gumbel_sample(
    grid_0,  # N
    grid_1,  # blocks of BLOCK_SIZE tokens
    local_argmax,  # [N, blocks] int64, written
    local_argmax_stride,
    local_max,  # [N, blocks] float32, or float64 with USE_FP64, written
    local_max_stride,
    logits_cache,  # [M, columns, V] or None, written
    logits_cache_stride_0,
    logits_cache_stride_1,
    logits_cache_col,  # [1], or [N] with PER_TOKEN_COL, or None
    logits_cache_source,  # [N, V] or None
    logits_cache_source_stride,
    logits,  # [N, V]
    logits_stride,
    expanded_idx_mapping,  # [N], -1 for padding
    seeds,  # [M]
    pos,  # [N]
    temp,  # [M]
    vocab_size,
    BLOCK_SIZE,
    IS_DRAFTING,
    APPLY_TEMPERATURE,
    USE_FP64,
    PER_TOKEN_COL,
    STEP_SEEDS=False,  # with a cache, each column has a seed of its own
):
    """The winner of each block of each row: argmax of logits (/ temperature) + Gumbel noise; at temperature 0 the
    plain argmax.

    With a cache, also store the row's logits before temperature, for the rejection sampler.
    """
    for row in range(grid_0):
        request = expanded_idx_mapping[row]
        temperature = np.float32(0.0)
        seed = np.int64(0)
        if request >= 0:
            temperature = np.float32(temp[request])
            seed = np.int64(seeds[request])
            if logits_cache is not None:
                column = logits_cache_col[row if PER_TOKEN_COL else 0]
                cache = request * logits_cache_stride_0 + column * logits_cache_stride_1
                for token in range(vocab_size):
                    logits_cache[cache + token] = logits_cache_source[row * logits_cache_source_stride + token]
                if STEP_SEEDS:
                    seed = seed_of_step(seed, column)
        random = temperature != 0
        scale = temperature if random and APPLY_TEMPERATURE else np.float32(1.0)
        position = pos[row] + (DRAFT_SALT if IS_DRAFTING else 0)
        for block in range(grid_1):
            begin = block * BLOCK_SIZE
            end = min(begin + BLOCK_SIZE, vocab_size)
            value, token = draw_block(logits, row * logits_stride, begin, end, scale, random, USE_FP64, seed, position)
            local_argmax[row * local_argmax_stride + block] = token
            local_max[row * local_max_stride + block] = value


def apply_temperature(
    grid_0,  # N
    grid_1,
    logits,  # [N, V], read and written
    logits_stride,
    expanded_idx_mapping,  # [N]
    temperature,  # [M]
    vocab_size,
    BLOCK_SIZE,
):
    """Divide each row by its temperature; 0 and 1 leave it unchanged."""
    for row in range(grid_0):
        divisor = np.float32(temperature[expanded_idx_mapping[row]])
        if divisor != 0 and divisor != 1:
            for i in range(row * logits_stride, row * logits_stride + vocab_size):
                store(logits, i, load(logits, i) / divisor)


def apply_min_p(
    grid_0,  # N
    grid_1,
    logits,  # [N, V], read and written
    logits_stride,
    expanded_idx_mapping,  # [N]
    min_p,  # [M]
    vocab_size,
    BLOCK_SIZE,
):
    """Forbid tokens whose probability is below min_p times the most likely token's; 0 forbids none."""
    for row in range(grid_0):
        share = np.float32(min_p[expanded_idx_mapping[row]])
        if share == 0:
            continue
        begin = row * logits_stride
        top = NEG_INF
        for i in range(begin, begin + vocab_size):
            top = max(top, load(logits, i))
        threshold = np.float32(top + np.float32(math.log(share)))
        for i in range(begin, begin + vocab_size):
            if load(logits, i) < threshold:
                forbid(logits, i)
