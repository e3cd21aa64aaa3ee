"""How all benchmarks summarise samples: the median and, in brackets, the minimum and maximum.

spread([3.0, 1.0, 2.0], 1)                      # "2.0 (1.0–3.0)"
ratios(ours, theirs)                            # round by round, so that a slow minute affects both equally
"""

import statistics
from collections.abc import Iterable, Sequence


def spread(samples: Sequence[float], digits: int) -> str:
    """Median and range; a dash if there are no samples."""
    if not samples:
        return "–"
    return f"{statistics.median(samples):.{digits}f} ({min(samples):.{digits}f}–{max(samples):.{digits}f})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Each round's ratio. Raises ValueError if the numbers of rounds differ."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
