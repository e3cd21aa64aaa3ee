"""The report of `vllm-nld compare`: the conclusion, a plot and a table of all verdicts, and answers that differ.

write(folder, "http://stable:8000", "http://canary:8000", {"linear": verdicts(...)}, pairs)
print(text(a, b, found))
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vllm_nld.evaluate.differences import Pair
from vllm_nld.evaluate.plots import bars, picture
from vllm_nld.evaluate.report import publish
from vllm_nld.evaluate.sections import NONE, Section, estimate
from vllm_nld.evaluate.spread import table
from vllm_nld.evaluate.verdict import MISSING, OK, UNCLEAR, WORSE, Verdict

Found = Mapping[str, Sequence[Verdict]]  # by mode

HEADER = ("mode", "measure", "verdict", "B against A", "limit")
COLORS = {OK: "#2b7a3d", UNCLEAR: "#b07d12", WORSE: "#b3261e"}
VIEW = 3.0  # the plot reaches to so many times the widest limit; an interval may be wider


def write(folder: Path, a: str, b: str, found: Found, pairs: Sequence[Pair] | None = None) -> list[Path]:
    """Write compare.md, compare.html and compare.json; the files. pairs: None if the texts aren't to be shown."""
    note = (
        "Square brackets: 95 % intervals. Ok: the interval stays within the limit. Worse: it lies beyond. Unclear: "
        "more prompts would decide. Latencies are compared by prompt, acceptance length and TPF by turn."
    )
    return publish(
        folder,
        "compare",
        {"a": a, "b": b, "modes": plain(found)},
        title="Is B worse than A?",
        method=f"A: `{a}`. B: `{b}`. Both answered the same prompts.",
        paragraphs=[conclusion(a, b, found)],
        sections=[Section("Verdicts", note, HEADER, tuple(lines(found)), "verdicts")],
        drawn={"verdicts": drawing(found)} if shown(found) else {},
        baseline="A",
        pairs=pairs or [],
    )


def text(a: str, b: str, found: Found) -> str:
    """A table of all verdicts, and the conclusion."""
    return f"{table(list(HEADER), [list(line) for line in lines(found)])}\n\n{conclusion(a, b, found)}"


def plain(found: Found) -> dict[str, list[dict[str, Any]]]:
    """The verdicts as plain data."""
    return {mode: [asdict(verdict) for verdict in judged] for mode, judged in found.items()}


def lines(found: Found) -> list[tuple[str, ...]]:
    """One line for each mode and measure."""
    cells: list[tuple[str, ...]] = []
    for mode, judged in found.items():
        for verdict in judged:
            factor, digits, unit = (1.0, 3, "×") if verdict.relative else (100.0, 1, " points")
            change = NONE if verdict.change is None else estimate(verdict.change, digits, factor)
            limit = f"{factor * verdict.limit:.{digits}f}{unit}"
            outcome = f"**{verdict.outcome}**" if verdict.outcome == WORSE else verdict.outcome
            cells.append((mode, verdict.name, outcome, change, limit))
    return cells


def conclusion(a: str, b: str, found: Found) -> str:
    """One sentence."""
    every = [verdict for judged in found.values() for verdict in judged]
    bad = list(dict.fromkeys(verdict.name for verdict in every if verdict.outcome == WORSE))
    if bad:
        return f"B ({b}) is worse than A ({a}): {', '.join(bad)}."
    open_ones = list(dict.fromkeys(verdict.name for verdict in every if verdict.outcome not in (OK, MISSING)))
    if open_ones:
        return f"B ({b}) isn't shown to be worse than A ({a}); more prompts would decide on {', '.join(open_ones)}."
    return f"B ({b}) is as good as A ({a}) within the limits."


# The plot


def shown(found: Found) -> list[tuple[str, Verdict]]:
    """The verdicts that have a change to draw, with their names."""
    return [
        (f"{mode}: {verdict.name}" if len(found) > 1 else verdict.name, verdict)
        for mode, judged in found.items()
        for verdict in judged
        if verdict.change is not None
    ]


def per_cent(value: float, relative: bool) -> float:
    """A ratio's per cent above 1; a difference in points."""
    return 100 * (value - 1 if relative else value)


def drawing(found: Found) -> str:
    """Every change with its interval beside its limit, as an SVG text."""
    rows = shown(found)

    def forest(axes: Any) -> bool:
        for place, (_, verdict) in enumerate(rows):
            assert verdict.change is not None
            change = [per_cent(value, verdict.relative) for value in verdict.change]
            middle, error = bars(change)
            color = COLORS[verdict.outcome]
            axes.errorbar(middle, place, xerr=error, fmt="o", ms=7, capsize=4, color=color)
            axes.plot(per_cent(verdict.limit, verdict.relative), place, "|", ms=22, mew=2.5, color="black")
        widest = max(abs(per_cent(verdict.limit, verdict.relative)) for _, verdict in rows) or 1.0
        axes.set_xlim(-VIEW * widest, VIEW * widest)
        axes.axvline(0, color="gray", linewidth=1)
        axes.set_yticks(range(len(rows)), [f"{name}, {verdict.outcome}" for name, verdict in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("B against A, % (accuracy, failures: points); bar: limit", fontsize="small")
        return True

    return picture(forest, 7, 1.2 + 0.4 * len(rows))
