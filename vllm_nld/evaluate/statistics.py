"""Intervals and tests, as pure functions on counts and samples.

share(62, 100)                      # (0.62, 0.52, 0.71): a share with its interval (Wilson)
paired(ours, theirs)                # the same prompts, answered by two modes: difference, interval, p (McNemar)
holm([0.01, 0.04])                  # p values, adjusted because several modes were compared
quantile(seconds, 0.95)             # with its interval, from order statistics
ratio(tokens, forwards)             # a ratio of sums, with its interval by bootstrap over turns
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE  # of significance
RESAMPLES = 2000

Estimate = tuple[float, float, float]  # a value and the limits of its interval


@dataclass(frozen=True, slots=True)
class Paired:
    """Two modes on the same prompts. gained, lost: prompts that only we, or only they, answered correctly.

    difference: our share of right answers less theirs, with its interval. p: the probability that chance alone makes a
    difference at least this large (exact McNemar test).
    """

    prompts: int
    gained: int
    lost: int
    difference: float
    low: float
    high: float
    p: float


def share(successes: int, trials: int) -> Estimate | None:
    """A share with Wilson's interval; None without trials."""
    from scipy.stats import binomtest

    if not trials:
        return None
    limits = binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return successes / trials, float(limits.low), float(limits.high)


def paired(ours: Sequence[bool], theirs: Sequence[bool]) -> Paired | None:
    """Compare two modes prompt by prompt; None without prompts. Raises ValueError if the numbers of prompts differ."""
    gained = sum(mine and not other for mine, other in zip(ours, theirs, strict=True))
    lost = sum(other and not mine for mine, other in zip(ours, theirs, strict=True))
    if not ours:
        return None
    low, high = difference_interval(gained, lost, len(ours))
    return Paired(len(ours), gained, lost, (gained - lost) / len(ours), low, high, mcnemar(gained, lost))


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p value: are prompts gained and lost equally likely?"""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def difference_interval(gained: int, lost: int, prompts: int) -> tuple[float, float]:
    """The interval of a paired difference of shares by Agresti and Min: Wald's, after half a prompt more on each side.

    It has a width even if no prompt was gained or lost.
    """
    from scipy.stats import norm

    z, b, c, n = norm.ppf(0.5 + CONFIDENCE / 2), gained + 0.5, lost + 0.5, prompts + 2
    middle, deviation = (b - c) / n, math.sqrt(b + c - (b - c) ** 2 / n) / n
    return float(max(-1, middle - z * deviation)), float(min(1, middle + z * deviation))


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted by Holm's method: at most LEVEL of all families of comparisons then have a false find."""
    order = sorted(range(len(values)), key=values.__getitem__)
    adjusted, highest = [1.0] * len(values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = highest
    return adjusted


def quantile(values: Sequence[float], q: float) -> Estimate | None:
    """A quantile with its distribution-free interval: the order statistics between which it lies with CONFIDENCE.

    With few values the upper limit of a high quantile is the greatest value. None without values.
    """
    import numpy as np
    from scipy.stats import binom

    if not len(values):
        return None
    ordered = np.sort(np.asarray(values, dtype=float))
    low, high = binom.ppf([LEVEL / 2, 1 - LEVEL / 2], len(ordered), q)
    limits = ordered[max(0, int(low) - 1)], ordered[min(len(ordered) - 1, int(high))]
    return float(np.quantile(ordered, q)), float(limits[0]), float(limits[1])


def ratio(above: Sequence[float], below: Sequence[float]) -> Estimate | None:
    """The ratio of two sums over the same turns, with its bootstrap interval; None if there is nothing below.

    A single turn has no spread, so its interval is the value.
    """
    import numpy as np

    tops, bottoms = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    if not bottoms.sum():
        return None

    def of_sums(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return x.sum(axis=axis) / y.sum(axis=axis)

    return resampled((tops, bottoms), of_sums)


def quantile_ratio(ours: Sequence[float], theirs: Sequence[float], q: float) -> Estimate | None:
    """The ratio of a quantile over the same prompts, with its bootstrap interval; None without prompts."""
    import numpy as np

    mine, other = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    if not len(mine) or not np.quantile(other, q):
        return None

    def of_quantiles(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return np.quantile(x, q, axis=axis) / np.quantile(y, q, axis=axis)

    return resampled((mine, other), of_quantiles)


def ratio_of_ratios(
    ours: tuple[Sequence[float], Sequence[float]], theirs: tuple[Sequence[float], Sequence[float]]
) -> Estimate | None:
    """Our ratio of sums relative to theirs, over the same turns; None if either has none."""
    import numpy as np

    samples = tuple(np.asarray(part, dtype=float) for part in (*ours, *theirs))
    if any(not part.sum() for part in samples):
        return None

    def of_sums(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, axis: int) -> np.ndarray:
        return (a.sum(axis=axis) / b.sum(axis=axis)) / (c.sum(axis=axis) / d.sum(axis=axis))

    return resampled(samples, of_sums)


def resampled(samples: tuple[Any, ...], statistic: Callable[..., Any]) -> Estimate:
    """A statistic of paired samples with its bootstrap interval; without a spread, the interval is the value."""
    import numpy as np
    from scipy.stats import bootstrap

    value = float(statistic(*samples, axis=-1))
    if len(samples[0]) < 2:
        return value, value, value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a resample without a spread, or without any counts
        limits = bootstrap(
            samples, statistic, paired=True, method="percentile", n_resamples=RESAMPLES, rng=np.random.default_rng(0)
        ).confidence_interval
    low, high = float(limits.low), float(limits.high)
    return value, low if math.isfinite(low) else value, high if math.isfinite(high) else value


def prompts_needed(difference: float, discordant: float) -> int:
    """About how many prompts it takes to tell a difference of shares from 0, if this share of prompts is discordant.

    For a power of 80 % at LEVEL.
    """
    from scipy.stats import norm

    if not difference:
        return 0
    z = norm.ppf(1 - LEVEL / 2) + norm.ppf(0.8)
    return math.ceil(z**2 * max(discordant, abs(difference)) / difference**2)
