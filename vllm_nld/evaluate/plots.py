"""The report's plots, as SVG texts: accuracy against TPF, acceptance by position, latency, speed.

for name, svg in draw(figures["all"], "ar").items():
    Path(f"{name}.svg").write_text(svg)
"""

import functools
import io
import itertools
from collections.abc import Callable, Mapping
from typing import Any

MARKERS, MOST_INSIDE = "os^vDP*X<", 6  # not as many as colours, so that both together repeat late
Rows = Mapping[str, Mapping[str, Any]]


def draw(mine: Rows, baseline: str) -> dict[str, str]:
    """Each plot that there is data for."""
    width = 7 if len(mine) <= MOST_INSIDE else 9
    drawn = {
        name: picture(functools.partial(plot, mine=mine, baseline=baseline), width) for name, plot in PLOTS.items()
    }
    return {name: svg for name, svg in drawn.items() if svg}


def picture(plot: Callable[[Any], bool], width: float = 7, height: float = 4) -> str:
    """One plot, in inches; empty if it has no data."""
    import matplotlib

    matplotlib.use("svg")
    style: Any = {
        "svg.hashsalt": "vllm-nld",
        "svg.fonttype": "path",
        "axes.grid": True,
        "grid.alpha": 0.3,
        "font.size": 11,
    }
    from matplotlib import pyplot

    with matplotlib.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
        if not plot(axes):
            pyplot.close(figure)
            return ""
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    return text.getvalue()


def bars(estimate: Any, factor: float = 1) -> tuple[float, list[list[float]]]:
    """A value and its error bars, as matplotlib wants them."""
    middle, low, high = (factor * part for part in estimate)
    return middle, [[max(0, middle - low)], [max(0, high - middle)]]


def points(axes: Any, mine: Rows, across: Callable[[Any], Any], factor: float = 1) -> bool:
    """Accuracy, or agreement if nothing was checked, against another figure: a point for each mode with intervals."""
    checked = any(row["accuracy"] is not None for row in mine.values())
    drawn = False
    for (name, row), marker in zip(mine.items(), itertools.cycle(MARKERS), strict=False):
        up, along = row["accuracy" if checked else "agreement"], across(row)
        if up is None or along is None:
            continue
        (x, x_error), (y, y_error) = bars(along, factor), bars(up, 100)
        axes.errorbar(x, y, xerr=x_error, yerr=y_error, fmt=marker, ms=8, capsize=3, label=name, alpha=0.8)
        drawn = True
    axes.set_ylabel("right answers, %" if checked else "same text as the baseline, %")
    axes.set_xlim(left=0)
    if drawn:
        legend(axes, len(mine))
    return drawn


def legend(axes: Any, entries: int) -> None:
    """Inside the plot, or beside it if there are many entries."""
    if entries <= MOST_INSIDE:
        axes.legend(fontsize="small")
    else:
        axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.01, 0.5))


def accuracy(axes: Any, mine: Rows, baseline: str) -> bool:
    axes.set_xlabel("output tokens per forward (TPF)")
    return points(axes, mine, lambda row: row["tpf"])


def latency(axes: Any, mine: Rows, baseline: str) -> bool:
    axes.set_xlabel("end-to-end latency P95, seconds (further left is better)")
    return points(axes, mine, lambda row: row["e2e"]["p95"])


def positions(axes: Any, mine: Rows, baseline: str) -> bool:
    drawn = False
    for name, row in mine.items():
        if row["by_position"]:
            shares = row["by_position"]
            axes.plot([int(p) for p in shares], [100 * share for share in shares.values()], marker=".", label=name)
            drawn = True
    axes.set_xlabel("position of the draft in its block")
    axes.set_ylabel("accepted, % of verify steps")
    axes.set_ylim(0, 100)
    if drawn:
        axes.legend(fontsize="small")
    return drawn


def speed(axes: Any, mine: Rows, baseline: str) -> bool:
    timed = {name: row["tokens_per_s"] for name, row in mine.items() if row["tokens_per_s"] is not None}
    for number, estimate in enumerate(timed.values()):
        value, error = bars(estimate)
        axes.barh(number, value, xerr=error, capsize=3, color="#4878a8")
    axes.set_yticks(range(len(timed)), list(timed))
    axes.invert_yaxis()
    axes.set_xlabel("output tokens per second")
    return bool(timed)


PLOTS = {"accuracy": accuracy, "positions": positions, "latency": latency, "speed": speed}
TITLES = {
    "accuracy": "Right answers against tokens per forward, with 95 % intervals",
    "positions": "Acceptance by position",
    "latency": "Right answers against latency, with 95 % intervals",
    "speed": "Output tokens per second, with 95 % intervals",
    "verdicts": "What B changes, with 95 % intervals and limits",
}
