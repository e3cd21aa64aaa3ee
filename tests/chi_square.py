"""Pearson's chi-square test of counts against exact probabilities."""

import math
from collections import Counter
from dataclasses import dataclass

import torch

FEW = 5  # cells that expect fewer samples are pooled into one


@dataclass(frozen=True, slots=True)
class Fit:
    """How far counts are from the expected ones. `follows` is wrongly False in 1 of 10 000 cases."""

    statistic: float
    freedom: int

    @property
    def bound(self) -> float:
        """The 1 - 1e-4 quantile, by Wilson and Hilferty's approximation."""
        part = 2 / (9 * self.freedom)
        return self.freedom * (1 - part + 3.719 * math.sqrt(part)) ** 3

    @property
    def follows(self) -> bool:
        return self.statistic < self.bound


def fit(
    counts: Counter[tuple[int, ...]],  # index into `probs`: samples
    probs: torch.Tensor,  # any shape, sums to 1
) -> Fit:
    """Compare counts of outcomes with the probabilities of all outcomes. An impossible outcome never fits."""
    total, observed, expected = sum(counts.values()), torch.zeros_like(probs), probs.double()
    for index, count in counts.items():
        observed[index] = count
    expected = expected * total
    if observed[expected == 0].any():
        return Fit(math.inf, 1)
    often = expected >= FEW
    rest = [observed[~often].sum().item(), expected[~often].sum().item()]
    statistic = ((observed - expected)[often] ** 2 / expected[often]).sum().item()
    if rest[1] >= FEW:
        statistic += (rest[0] - rest[1]) ** 2 / rest[1]
    return Fit(statistic, int(often.sum()) - (rest[1] < FEW))
