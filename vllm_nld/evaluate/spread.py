"""How all benchmarks summarise samples.

spread([3.0, 1.0, 2.0], 1)                      # "2.0 (1.0–3.0)": median, minimum and maximum
ratios(ours, theirs)                            # pair by pair, so that a slow minute affects both equally
interval(ratios(ours, theirs), 2)               # "1.02 [0.99, 1.04]": median and its 95 % confidence interval
"""

import statistics
from collections.abc import Iterable, Sequence

CONFIDENCE = 95  # per cent
RESAMPLES = 2000


def spread(samples: Sequence[float], digits: int) -> str:
    """Median and range; a dash if there are no samples."""
    if not samples:
        return "–"
    return f"{statistics.median(samples):.{digits}f} ({min(samples):.{digits}f}–{max(samples):.{digits}f})"


def interval(samples: Sequence[float], digits: int) -> str:
    """Median and its confidence interval; a dash if there are no samples."""
    if not samples:
        return "–"
    low, high = bounds(samples)
    return f"{statistics.median(samples):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def bounds(samples: Sequence[float]) -> tuple[float, float]:
    """The confidence interval of the median, by bootstrap: the range of medians of samples drawn with replacement."""
    import numpy as np

    draw = np.random.RandomState(0)  # this generator's stream never changes, so generated tables don't either
    values = np.asarray(samples, dtype=float)
    medians = np.median(values[draw.randint(len(values), size=(RESAMPLES, len(values)))], axis=1)
    outside = (100 - CONFIDENCE) / 2
    low, high = np.percentile(medians, [outside, 100 - outside])
    return float(low), float(high)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Each pair's ratio. Raises ValueError if the numbers of samples differ."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
