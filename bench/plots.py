"""The report's plots, as SVG: speed-up by concurrency and mode, accuracy against TPF, and the roofline.

Each file contains a digest of its data and of this module, so that `--check` can detect a stale plot without comparing
drawings, which differ between releases of matplotlib.

    draw(speedup, result, Path("speedup.svg"))
    is_current(speedup, result, Path("speedup.svg"))
"""

import hashlib
import itertools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.contenders import AR, STOCK_AR
from bench.modes_report import against, concurrencies
from vllm_nld.evaluate.spread import bounds

Plot = Callable[[Any, Any], None]  # draws a result on axes


def draw(plot: Plot, result: dict[str, Any], file: Path) -> None:
    """Write one plot to `file`."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {"svg.hashsalt": "vllm-nld", "svg.fonttype": "none", "axes.grid": True, "grid.alpha": 0.3}
    )
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    plot(result, axes)
    file.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None, "Creator": None, "Description": digest(plot, result)}
    figure.savefig(file, metadata=metadata)
    pyplot.close(figure)


def digest(plot: Plot, result: dict[str, Any]) -> str:
    """A digest of the plot's name, its data and this module's source."""
    data = json.dumps(result, sort_keys=True) + plot.__name__ + Path(__file__).read_text(encoding="utf-8")
    return f"digest {hashlib.sha256(data.encode()).hexdigest()[:16]}"


def is_current(plot: Plot, result: dict[str, Any], file: Path) -> bool:
    """Whether the file was drawn from this result by the current code."""
    return file.exists() and digest(plot, result) in file.read_text(encoding="utf-8")


def speedup(result: dict[str, Any], axes: Any) -> None:
    """Tokens/s relative to AR by concurrency, one line per mode with its confidence interval."""
    at = concurrencies(result)
    for name in result["speed"]:
        points = [(int(c), against(result, name, AR, c)) for c in at if against(result, name, AR, c)]
        if name == AR or len(points) < 2:
            continue
        middles = [statistics.median(gains) for _, gains in points]
        limits = [bounds(gains) for _, gains in points]
        below = [middle - low for middle, (low, _) in zip(middles, limits, strict=True)]
        above = [high - middle for middle, (_, high) in zip(middles, limits, strict=True)]
        style = "--" if name.startswith(STOCK_AR.split(",")[0]) else "-"
        axes.errorbar([c for c, _ in points], middles, yerr=[below, above], label=name, marker="o", ls=style, capsize=3)
    axes.axhline(1, color="black", lw=1)
    axes.set_ylim(bottom=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks([int(c) for c in at], at)
    axes.set_xlabel("concurrent requests")
    axes.set_ylabel("tokens/s, AR = 1")
    axes.set_title(
        f"Speed-up over AR on the same build: {result['model']}, {result['provenance']['machine']['cores']} cores"
    )
    axes.legend(fontsize="small")


def accuracy(result: dict[str, Any], axes: Any) -> None:
    """Exact match against tokens per forward, one point per mode; diffusion's thresholds are connected."""
    thresholds: list[tuple[float, float]] = []
    markers = itertools.cycle("os^vDP*X")
    for name, quality in result["quality"].items():
        if quality and quality["exact"] is not None:
            point = (quality["tpf"], 100 * quality["exact"])
            if name.startswith("diffusion"):
                thresholds.append(point)
            axes.plot(*point, next(markers), label=name, ms=8, alpha=0.7)
    if thresholds:
        axes.plot(*zip(*sorted(thresholds), strict=True), color="grey", lw=1, zorder=0)
    axes.set_xlabel("output tokens per forward (TPF)")
    axes.set_ylabel("exact match, %")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 100)
    axes.legend(fontsize="small")
    axes.set_title(f"Accuracy against tokens per forward: {result['model']}, {result['questions']} held-out prompts")


def roofline(result: dict[str, Any], axes: Any) -> None:
    """This CPU: predicted tokens/s by concurrency as lines, measured tokens/s as points."""
    rows = [row for row in result["measured"] if row["model"] != "nano"] or result["measured"]
    for mode in dict.fromkeys(row["mode"] for row in rows):
        mine = sorted((row for row in rows if row["mode"] == mode), key=lambda row: row["batch"])
        batches = [row["batch"] for row in mine]
        (line,) = axes.plot(batches, [row["predicted"] for row in mine], label=f"{mode}, predicted")
        axes.plot(batches, [row["measured"] for row in mine], "o", color=line.get_color(), label=f"{mode}, measured")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("concurrent requests")
    axes.set_ylabel("tokens/s")
    axes.set_title("Analytic model and measurements on this CPU")
    axes.legend(fontsize="x-small", ncols=2)
