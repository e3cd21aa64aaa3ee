"""Acceptance with and without an adapter: AL, TPF, acceptance by position, intervals, and a verdict.

    runs = {"none": Run(...), "shipped": Run(...), "new": Run(...)}
    verdict(runs["shipped"], runs["new"], margin=0.02).worse        # categories in which the new one is worse

Intervals are 95 % bootstrap intervals over conversations. Two adapters are compared on the same conversations, pair by
pair, so that hard prompts affect both alike.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
FEWEST = 6  # prompts of a certain loss: by chance, all of five change in the same direction in 6 % of cases
Trace = list[tuple[int, int, int]]  # emitted, accepted and drafted tokens of each round of a conversation


@dataclass(frozen=True, slots=True)
class Run:
    """What one adapter drafted: a trace for each conversation, in the same order in every run."""

    traces: Sequence[Trace]
    categories: Sequence[str]

    def __post_init__(self) -> None:
        if not self.traces or len(self.traces) != len(self.categories):
            raise ValueError(f"{len(self.traces)} traces and {len(self.categories)} categories: one each, at least one")

    def of(self, category: str | None) -> "Run":
        """The conversations of a category; None: all."""
        chosen = [i for i, name in enumerate(self.categories) if category in (None, name)]
        return Run([self.traces[i] for i in chosen], [self.categories[i] for i in chosen])

    @property
    def counts(self) -> np.ndarray:  # [conversations, 2] int: emitted tokens and rounds
        return np.array([[sum(emitted for emitted, _, _ in trace), len(trace)] for trace in self.traces])

    @property
    def acceptance_length(self) -> float:
        """Tokens per verify step, bonus token included."""
        emitted, steps = self.counts.sum(axis=0)
        return float(emitted / steps)

    @property
    def tpf(self) -> float:
        """Output tokens per forward: one for the prefill, two for each round."""
        emitted, steps = self.counts.sum(axis=0)
        return float((emitted + len(self.traces)) / (2 * steps + len(self.traces)))

    @property
    def interval(self) -> tuple[float, float]:
        """Of the acceptance length."""
        sums = self.counts[resamples(len(self.traces))].sum(axis=1)
        return bounds(sums[:, 0] / sums[:, 1])

    @property
    def by_position(self) -> list[float]:
        """The share of blocks accepted up to each position, of those that were long enough."""
        pairs = [(accepted, drafted) for trace in self.traces for _, accepted, drafted in trace]
        longest = max((drafted for _, drafted in pairs), default=0)
        long = [
            [accepted >= place for accepted, drafted in pairs if drafted >= place] for place in range(1, longest + 1)
        ]
        return [sum(kept) / len(kept) for kept in long]


@dataclass(frozen=True, slots=True)
class Change:
    """An adapter's acceptance length relative to another one's, less one."""

    change: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """changes: by category, and over all. worse: those in which the loss exceeds the margin and is no accident.

    unclear: those in which it exceeds the margin, but which have too few prompts to tell.
    """

    changes: dict[str, Change]
    worse: tuple[str, ...]
    unclear: tuple[str, ...]

    @property
    def good(self) -> bool:
        return not self.worse


def change(old: Run, new: Run) -> Change:
    """The change from one run to another over the same conversations."""
    pairs = np.concatenate([old.counts, new.counts], axis=1)  # [conversations, 4]
    sums = pairs[resamples(len(pairs))].sum(axis=1)
    low, high = bounds(sums[:, 2] / sums[:, 3] / (sums[:, 0] / sums[:, 1]) - 1)
    return Change(new.acceptance_length / old.acceptance_length - 1, low, high)


def verdict(old: Run, new: Run, margin: float) -> Verdict:
    """Whether the new adapter may be used: nowhere worse than the old one by more than the margin.

    Fewer prompts than FEWEST do not tell: resamples of one or two have no spread, or hardly any.

    Raises ValueError if the runs are not over the same conversations.
    """
    if list(old.categories) != list(new.categories):
        raise ValueError("the runs are over different conversations")
    names: Iterable[str | None] = (None, *dict.fromkeys(old.categories))
    changes = {name or "all": change(old.of(name), new.of(name)) for name in names}
    losses = {name: found for name, found in changes.items() if found.change < -margin}
    prompts = {**Counter(old.categories), "all": len(old.categories)}
    worse = tuple(name for name, found in losses.items() if found.high < 0 and prompts[name] >= FEWEST)
    return Verdict(changes, worse, tuple(name for name in losses if name not in worse))


def resamples(count: int) -> np.ndarray:  # [RESAMPLES, count] int
    return np.random.RandomState(0).randint(count, size=(RESAMPLES, count))  # this generator's stream never changes


def bounds(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
