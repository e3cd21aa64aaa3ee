"""The random numbers of vLLM's samplers: counter-based, so seed, position and token id determine each one.

Accepting a draft: Philox-4x32-10 over (position), keyed by the seed, like `triton.language.rand`.

Sampling a token: Murmur3 over (seed, position, token) gives 32 bits, or 53 from two hashes. Gumbel noise is
-log(-log1p(-u)), whose winning tail is at u -> 0, where float32 is most precise. Widths and order of operations are
those of vLLM's kernels, because a seed must give the same sample on every device. Sources: Appleby's
MurmurHash3_x86_32; `vllm/v1/worker/gpu/sample/gumbel.py`.
"""

import math

import numpy as np
from numba import njit, uint64

MASK32 = uint64(0xFFFFFFFF)
SECOND_HASH = 0x9E3779B9  # initial value of the hash for the high bits of a 53-bit number
SMALLEST = np.float32(4.6566127342e-10)  # the smallest positive number of `uniform32`
DRAFT_SALT = 1 << 30  # added to a draft's position, so that a draft and its residual never share noise
MOST_NOISE = np.float32(24.0)  # more than the largest float32 noise, -log(2**-33) = 22.88


@njit(inline="always")
def mix(h, key):
    """Mix a 32-bit word into the hash; all values are uint64."""
    key = (key * uint64(0xCC9E2D51)) & MASK32
    key = ((key << uint64(15)) | (key >> uint64(17))) & MASK32
    key = (key * uint64(0x1B873593)) & MASK32
    h = h ^ key
    h = ((h << uint64(13)) | (h >> uint64(19))) & MASK32
    return (h * uint64(5) + uint64(0xE6546B64)) & MASK32


@njit(inline="always")
def prefix(seed, position, domain):
    """The hash of a row's (seed, position), to be continued with a token."""
    h = uint64(domain)
    h = mix(h, uint64(seed) & MASK32)
    h = mix(h, (uint64(seed) >> uint64(32)) & MASK32)
    return mix(h, uint64(position) & MASK32)


@njit(inline="always")
def finish(row, token):
    """The 32 random bits of a token in a row."""
    h = mix(row, uint64(token) & MASK32) ^ uint64(16)
    h = h ^ (h >> uint64(16))
    h = (h * uint64(0x85EBCA6B)) & MASK32
    h = h ^ (h >> uint64(13))
    h = (h * uint64(0xC2B2AE35)) & MASK32
    return h ^ (h >> uint64(16))


@njit(inline="always")
def log1p_of_negative(u):
    """log(1 - u) for u in (0, 1) in float32: a series below 0.25."""
    if u < np.float32(0.25):
        series = np.float32(1.0 / 8.0)
        series = np.float32(1.0 / 7.0) + u * series
        series = np.float32(1.0 / 6.0) + u * series
        series = np.float32(1.0 / 5.0) + u * series
        series = np.float32(1.0 / 4.0) + u * series
        series = np.float32(1.0 / 3.0) + u * series
        series = np.float32(1.0 / 2.0) + u * series
        series = np.float32(1.0) + u * series
        return -u * series
    return np.float32(math.log(max(np.float32(1.0) - u, np.float32(5.960464477539063e-08))))


@njit(inline="always")
def gumbel32(row, token):
    """Gumbel noise of a token in float32, from 32 bits."""
    bits = finish(row, token)
    high = np.float32(bits >> uint64(16)) * np.float32(2.0**-16)
    low = (np.float32(bits & uint64(0xFFFF)) + np.float32(0.5)) * np.float32(2.0**-32)
    return -np.float32(math.log(-log1p_of_negative(high + low)))


@njit(inline="always")
def gumbel64(row, second_row, token):
    """Gumbel noise of a token in float64, from 53 bits of two hashes."""
    bits = ((finish(second_row, token) << uint64(32)) | finish(row, token)) >> uint64(11)
    u = (np.float64(bits) + 0.5) * 2.0**-53
    if u == 1.0:
        u -= 2.0**-53
    return -math.log(-math.log(u))


@njit(inline="always")
def noisy(logit, token, best, low_row, high_row, use_fp64):
    """A logit plus its token's Gumbel noise in float64; -inf right away if no noise could lift it above `best`."""
    if use_fp64:
        return np.float64(logit) + gumbel64(low_row, high_row, token)
    if logit + MOST_NOISE > best:
        return np.float64(np.float32(logit + gumbel32(low_row, token)))
    return -np.inf


@njit(inline="always")
def seed_of_step(seed, step):
    """The seed of a request's draft `step`, where steps have seeds of their own."""
    return np.int64(seed) ^ (np.int64(step) << np.int64(32))


@njit
def uniform32(seed, offset):
    """A float32 in [SMALLEST, 1) from the first word of Philox."""
    c0, c1, c2, c3 = uint64(offset) & MASK32, (uint64(offset) >> uint64(32)) & MASK32, uint64(0), uint64(0)
    k0, k1 = uint64(seed) & MASK32, (uint64(seed) >> uint64(32)) & MASK32
    for _ in range(10):
        low, high = uint64(0xD2511F53) * c0, uint64(0xCD9E8D57) * c2
        c0, c2 = (high >> uint64(32)) ^ c1 ^ k0, (low >> uint64(32)) ^ c3 ^ k1
        c1, c3 = high & MASK32, low & MASK32
        k0, k1 = (k0 + uint64(0x9E3779B9)) & MASK32, (k1 + uint64(0xBB67AE85)) & MASK32
    signed = np.int64(c0)
    if signed >= 1 << 31:
        signed = (1 << 32) - 1 - signed
    return max(np.float32(signed) * np.float32(4.6566127342e-10), SMALLEST)
