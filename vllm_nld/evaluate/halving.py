"""Successive halving: many settings answer few prompts, the better half of them answers more.

    rungs(candidates=12, prompts=200)           # [(12, 16), (6, 37), (3, 86), (2, 200)]: settings, prompts in all
    survivors(figures, names, target, keep=6)

A setting is dropped if it misses the target beyond doubt, or if enough others are faster.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEAST = 16  # prompts of the first rung
FINALISTS = 2


@dataclass(frozen=True, slots=True)
class Target:
    """within: at most this much less accurate than the baseline, a share. p95: most seconds of E2E P95; None: any."""

    within: float = 0.005
    p95: float | None = None

    def __post_init__(self) -> None:
        if self.within < 0 or (self.p95 is not None and self.p95 <= 0):
            raise ValueError("a target's points can't be negative, and its seconds must be positive")

    @property
    def words(self) -> str:
        late = f", with an E2E P95 of at most {self.p95:g} s" if self.p95 is not None else ""
        return f"at most {100 * self.within:g} points less accurate than the baseline{late}"


def change(row: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """By how much a setting is more accurate than the baseline; if nothing is checked, how many texts are the same."""
    pair = row["against"]
    if pair is not None:
        return pair["difference"], pair["low"], pair["high"]
    same = row["agreement"]
    return None if same is None else (same[0] - 1, same[1] - 1, same[2] - 1)


def meets(row: Mapping[str, Any], target: Target) -> bool:
    """Whether a setting meets the target, as far as its prompts tell."""
    found, late = change(row), row["e2e"]["p95"]
    accurate = found is not None and found[0] >= -target.within
    return accurate and (target.p95 is None or (late is not None and late[0] <= target.p95))


def misses(row: Mapping[str, Any], target: Target) -> bool:
    """Whether a setting misses the target beyond doubt."""
    found, late = change(row), row["e2e"]["p95"]
    wrong = found is None or found[2] < -target.within
    return wrong or (target.p95 is not None and late is not None and late[1] > target.p95)


def speed(row: Mapping[str, Any]) -> float:
    return row["speedup"][0] if row["speedup"] is not None else 0.0


def survivors(mine: Mapping[str, Mapping[str, Any]], names: Sequence[str], target: Target, keep: int) -> list[str]:
    """The settings that are worth more prompts: by turns the fastest that meets the target and the fastest that may."""
    by_speed = sorted((name for name in names if not misses(mine[name], target)), key=lambda name: -speed(mine[name]))
    good = [name for name in by_speed if meets(mine[name], target)]
    open_ones = [name for name in by_speed if name not in good]
    pairs = itertools.zip_longest(good, open_ones)
    return [name for pair in pairs for name in pair if name is not None][:keep]


def rungs(candidates: int, prompts: int) -> list[tuple[int, int]]:
    """How many settings answer how many prompts, in all: half the settings from one rung to the next."""
    halvings = max(0, math.ceil(math.log2(max(1, candidates) / FINALISTS)))
    if prompts <= LEAST or not halvings:
        return [(candidates, prompts)]
    growth = (prompts / LEAST) ** (1 / halvings)
    return [(math.ceil(candidates / 2**number), round(LEAST * growth**number)) for number in range(halvings + 1)]


def winner(mine: Mapping[str, Mapping[str, Any]], names: Sequence[str], target: Target) -> str | None:
    """The fastest setting that meets the target; None if none does."""
    good = [name for name in names if meets(mine[name], target)]
    return max(good, key=lambda name: speed(mine[name])) if good else None
