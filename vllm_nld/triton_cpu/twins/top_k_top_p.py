"""Top-k and top-p without sorting: search for the cut-off logit or probability.

Both searches narrow a range until just enough values are above a pivot, then break ties by position. Both stop after 18
rounds, so the cut is approximate if many values are close. The same samples require the same approximation, so the
searches and their constants follow the kernel (`vllm/v1/sample/ops/topk_topp_triton.py`) tile by tile.
"""

import math

import numpy as np
from numba import njit

from vllm_nld.triton_cpu.twins.pointers import NEG_INF

INF = np.float32(np.inf)
ONE = np.float32(1.0)
HALF = np.float32(0.5)
SAME = np.float32(1e-9)  # values closer than this count as equal
ROUNDS = 18


@njit
def above(values, at, count, tile, pivot, most):
    """(number, sum, minimum, ties at the minimum) of `values[at:at + count]` above the pivot.

    Ties are counted per tile: within a tile against its own minimum, across tiles against the minimum so far.
    """
    number, total, least, repeats = 0, 0.0, most, 0
    for begin in range(at, at + count, tile):
        end = min(begin + tile, at + count)
        smallest = most
        for i in range(begin, end):
            if values[i] > pivot:
                number += 1
                total += values[i]
                smallest = min(smallest, values[i])
        equal = 0
        for i in range(begin, end):
            if values[i] > pivot and abs(values[i] - smallest) < SAME:
                equal += 1
        if smallest < least:
            repeats = equal
        elif abs(smallest - least) < SAME:
            repeats += equal
        least = min(least, smallest)
    return number, np.float32(total), least, repeats


@njit
def search_k(values, at, count, tile, k, low, high):
    """A pivot with k values above it, ties aside: (pivot, number above, their minimum, ties at the minimum)."""
    pivot, number, least, repeats, found, rounds = INF, 0, INF, 0, False, 0
    while not found:
        pivot_0 = (high - low) / np.float32(3.0) + low
        pivot_1 = (high - low) * np.float32(2.0) / np.float32(3.0) + low
        number_0, _, least_0, repeats_0 = above(values, at, count, tile, pivot_0, INF)
        number_1, _, least_1, repeats_1 = above(values, at, count, tile, pivot_1, INF)
        if number_0 >= k and number_0 - repeats_0 < k:
            pivot, number, least, repeats, found = pivot_0, number_0, least_0, repeats_0, True
        if number_1 >= k and number_1 - repeats_1 < k:
            pivot, number, least, repeats, found = pivot_1, number_1, least_1, repeats_1, True
        if number_1 > k:
            low = pivot_1
        elif number_0 > k:
            low = pivot_0
        if number_0 < k:
            high = pivot_0
        elif number_1 < k:
            high = pivot_1
        rounds += 1
        if rounds >= ROUNDS or abs(low - high) < SAME:
            pivot, least, repeats, found = (high + low) / np.float32(2.0), least_0, repeats_0, True
    return pivot, number, least, repeats


@njit
def search_p(probs, at, count, tile, p, low, high):
    """A pivot with probability p above it, ties aside: (pivot, sum above, their minimum, ties at the minimum)."""
    pivot, total, least, repeats, found, rounds = ONE, np.float32(0.0), ONE, 0, False, 0
    while not found:
        middle = (high - low) * HALF + low
        _, sum_0, least_0, repeats_0 = above(probs, at, count, tile, middle, ONE)
        if sum_0 >= p and sum_0 - least_0 * np.float32(repeats_0) < p:
            pivot, total, least, repeats, found = middle, sum_0, least_0, repeats_0, True
        if sum_0 > p:
            low = middle
        elif sum_0 < p:
            high = middle
        rounds += 1
        if high - low < SAME or rounds >= ROUNDS:
            pivot, total, least, repeats, found = (high + low) / np.float32(2.0), sum_0, least_0, repeats_0, True
    return pivot, total, least, repeats


@njit
def moments(logits, at, count):
    """(mean, standard deviation) of the finite logits among the first `count`, a sample of the row; (0, 0) if none."""
    number, total, squares = 0, 0.0, 0.0
    for i in range(at, at + count):
        if logits[i] > NEG_INF:
            number += 1
            total += logits[i]
            squares += logits[i] * logits[i]
    if number == 0:
        return np.float32(0.0), np.float32(0.0)
    mean, square = np.float32(total / number), np.float32(squares / number)
    return mean, np.float32(math.sqrt(max(square - mean * mean, np.float32(0.0))))


@njit
def extremes(logits, at, count):
    """(maximum, finite minimum, number of finite) logits of a row; the minimum equals the maximum if none is finite."""
    high, low, number = NEG_INF, INF, 0
    for i in range(at, at + count):
        high = max(high, logits[i])
        if logits[i] > NEG_INF:
            low = min(low, logits[i])
            number += 1
    return high, min(low, high), number


@njit
def gather(source, at, count, threshold, out):
    """Copy the values above the threshold in order; return their number."""
    number = 0
    for i in range(at, at + count):
        if source[i] > threshold:
            out[number] = source[i]
            number += 1
    return number


@njit
def cut_p(probs, count, tile, p, total, top, low, high):
    """Search over probabilities exp(logit - top) / total and return (cut, tied logit, ties, ties to keep)."""
    pivot, mass, least, ties = search_p(probs, 0, count, tile, p, low, high)
    cut = np.float32(math.log(pivot * total)) + top
    tied = np.float32(math.log(least * total)) + top
    return cut, tied, ties, ties - np.int64((mass - p) / least)


@njit
def top_k_then_p(logits, at, vocab, scratch, outliers, tile, k, p, top, pivot, tied, ties, keep):
    """The top-p cut among the tokens that top-k kept; `outliers` is the number of logits in scratch, 0: use the row."""
    total, kept, number = 0.0, 0, 0
    source, first, count = (scratch, 0, outliers) if outliers > 0 else (logits, at, vocab)
    for i in range(first, first + count):
        survives = source[i] > pivot
        if abs(source[i] - tied) < SAME:
            kept += 1
            survives = survives and kept <= keep
        weight = np.float32(math.exp(source[i] - top))
        if survives:
            total += float(weight)
        if survives or outliers > 0:
            scratch[number] = weight
            number += 1
    norm = np.float32(total)
    for i in range(number):
        scratch[i] = scratch[i] / norm
    low, high = np.float32(math.exp(pivot - top)) / norm, ONE / norm
    return cut_p(scratch, number, tile, p, norm, top, low, high)


@njit
def top_p_alone(logits, at, vocab, scratch, tile, small_tile, p, high, low, sigmas):
    """The top-p cut of a whole row, searching its more likely tokens first."""
    mean, deviation = moments(logits, at, min(tile, vocab))
    top = mean + deviation * np.float32(10.0)
    total = 0.0
    for i in range(at, at + vocab):
        total += math.exp(logits[i] - top)
    norm = np.float32(total)
    sigma = sigmas[max(0, min(np.int64(p * np.float32(200.0)), 199))]
    sigma += abs(sigma) * np.float32(-0.25)
    likely = np.float32(math.exp(mean + deviation * sigma - top)) / norm
    mass, number = 0.0, 0
    for i in range(at, at + vocab):
        prob = np.float32(math.exp(logits[i] - top)) / norm
        if prob > likely:
            scratch[number] = prob
            number += 1
            mass += float(prob)
    most = np.float32(math.exp(high - top)) / norm
    if np.float32(mass) > p:
        return cut_p(scratch, number, small_tile, p, norm, top, likely, most)
    for i in range(vocab):
        scratch[i] = np.float32(math.exp(logits[at + i] - top)) / norm
    return cut_p(scratch, vocab, tile, p, norm, top, np.float32(math.exp(low - top)) / norm, most)


@njit
def mask(logits, at, vocab, value, cut, tied, ties, keep):
    """Forbid tokens at or below the cut, and ties after the first `keep`."""
    kept = 0
    for i in range(at, at + vocab):
        survives = logits[i] > cut
        if keep < ties and abs(logits[i] - tied) < SAME:
            kept += 1
            survives = survives and kept <= keep
        if not survives:
            logits[i] = value


def top_k_top_p(
    grid_0,
    grid_1,
    LOGITS,  # [N, V] float32, read and written
    LOGITS_STRIDE_0,
    BUFFER,  # [at least 1, V] float32, overwritten
    PERCENTILE_TO_STD_TABLE,  # [200] cut-off in standard deviations for a normal sample's top K, by K / V x 200
    NORMAL_CDF_TO_SIGMA_TABLE,  # [200] the same for the top probability P, by P x 200
    K,  # [N] int32
    P,  # [N] float32
    BATCH_SIZE,
    VOCAB_SIZE,
    MASK_VALUE,
    BLOCK_SIZE,
    BLOCK_SIZE_TRUNC,
    TOPK_ENABLED,
    TOPP_ENABLED,
    SPLIT_COVERS_PONLY,
):
    """Mask all but the K most likely tokens of each row, then all but those that make up probability P of the rest."""
    for row in range(BATCH_SIZE):
        at = row * LOGITS_STRIDE_0
        high, low, finite = extremes(LOGITS, at, VOCAB_SIZE)
        share = np.float32(P[row]) if TOPP_ENABLED else ONE
        cut, tied, ties, keep = NEG_INF, INF, 0, 0
        wanted = np.int64(K[row]) if TOPK_ENABLED else VOCAB_SIZE
        if wanted < VOCAB_SIZE and finite > wanted:
            mean, deviation = moments(LOGITS, at, min(BLOCK_SIZE, VOCAB_SIZE))
            percentile = min(np.int64(np.float32(wanted) / np.float32(VOCAB_SIZE) * np.float32(200.0)), 199)
            sigma = PERCENTILE_TO_STD_TABLE[percentile]
            sigma += abs(sigma) * np.float32(-0.15)
            threshold = mean + deviation * sigma
            outliers = gather(LOGITS, at, VOCAB_SIZE, threshold, BUFFER)
            if outliers > wanted:
                found = search_k(BUFFER, 0, outliers, BLOCK_SIZE_TRUNC, wanted, threshold, high)
            else:
                found = search_k(LOGITS, at, VOCAB_SIZE, BLOCK_SIZE, wanted, low, high)
                outliers = 0
            cut, number, tied, ties = found
            keep = ties - (number - wanted)
            if share < 1:
                cut, tied, ties, keep = top_k_then_p(
                    LOGITS,
                    at,
                    VOCAB_SIZE,
                    BUFFER,
                    outliers,
                    BLOCK_SIZE_TRUNC,
                    wanted,
                    share,
                    high,
                    cut,
                    tied,
                    ties,
                    keep,
                )
        if share < 1 and cut == NEG_INF and not (SPLIT_COVERS_PONLY and TOPK_ENABLED and wanted >= VOCAB_SIZE):
            cut, tied, ties, keep = top_p_alone(
                LOGITS,
                at,
                VOCAB_SIZE,
                BUFFER,
                BLOCK_SIZE,
                BLOCK_SIZE_TRUNC,
                share,
                high,
                low,
                NORMAL_CDF_TO_SIGMA_TABLE,
            )
        if cut < high and cut != NEG_INF:
            mask(LOGITS, at, VOCAB_SIZE, MASK_VALUE, cut, tied, ties, keep)
