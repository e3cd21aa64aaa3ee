"""The Grafana dashboard's panels as one image, drawn from a real Prometheus, to view without Grafana.

    python -m bench dashboard --out dashboard.png                      # serves nano under mixed load and scrapes it
    python -m bench dashboard --prometheus http://localhost:9090 --last 3600 --out dashboard.png

Titles, queries and legends come from deploy/grafana/dashboards/vllm-nld.json, the file that Grafana reads.
"""

import argparse
import json
import re
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.prometheus import Prometheus, prometheus
from vllm_nld.nano import checkpoint_path, heldout
from vllm_nld.tools.server import Server

DASHBOARD = Path(__file__).parents[1] / "deploy" / "grafana" / "dashboards" / "vllm-nld.json"
COLUMNS, WIDTH, HEIGHT = 3, 5.2, 2.7  # columns of the image; inches per panel
SETTINGS = {"nld": {"groups": 2}}  # of the server, so that it offers every mode
ASKED: tuple[dict[str, Any], ...] = (  # by the load's requests, in turn
    {"nld_mode": "auto"},
    {"nld_mode": "diffusion"},
    {"nld_mode": "linear", "nld_tree_nodes": 31},
    {"nld_mode": "auto"},
    {"nld_mode": "linear"},
    {"nld_mode": "ar"},
    {"nld_mode": "quadratic"},
)


@dataclass(frozen=True, slots=True)
class Span:
    """The time range to draw, as Unix times, and the rate window in seconds."""

    start: float
    end: float
    rate: int

    @property
    def step(self) -> float:
        return max(1.0, (self.end - self.start) / 150)


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels without its rows."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def variables() -> list[dict[str, Any]]:
    """The variables at the top of the dashboard."""
    return json.loads(DASHBOARD.read_text())["templating"]["list"]


def filled(expr: str, rate: int) -> str:
    """A query with Grafana's variables filled in: select everything, use this rate window, and the texts' defaults."""
    texts = {one["name"]: one["query"] for one in variables() if one["type"] == "textbox"}
    expr = expr.replace("$__rate_interval", f"{rate}s")
    return re.sub(r"\$(\w+)", lambda name: texts.get(name[1], ".*"), expr)


def legend(template: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda name: labels.get(name[1], ""), template)


def draw(panel: dict[str, Any], axes: Any, server: Prometheus, span: Span) -> int:
    """Draw one panel and return its number of series."""
    series = [
        (legend(target["legendFormat"], one["metric"]), one["metric"], one["values"])
        for target in panel["targets"]
        for one in server.query_range(filled(target["expr"], span.rate), span.start, span.end, span.step)
    ]
    axes.set_title(panel["title"], fontsize=9, loc="left", fontweight="bold")
    axes.tick_params(labelsize=7)
    if panel["type"] == "heatmap":
        draw_heatmap(series, axes, span, cumulative="le" in (series[0][1] if series else ()))
    elif panel["type"] == "stat":
        draw_numbers(series, axes)
    else:
        for name, _, values in series:
            times = [float(at) - span.start for at, _ in values]
            axes.plot(times, [float(value) for _, value in values], label=name, linewidth=1.2)
        axes.set_xlim(0, span.end - span.start)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        if any(name for name, *_ in series):
            axes.legend(fontsize=6, loc="upper left", ncols=1 + len(series) // 7, framealpha=0.6)
    if not series:
        axes.text(0.5, 0.5, "no data", ha="center", transform=axes.transAxes, color="grey")
    return len(series)


def draw_heatmap(series: list[Any], axes: Any, span: Span, cumulative: bool) -> None:
    """Buckets or positions on the vertical axis, time on the horizontal."""
    import numpy as np

    rows = sorted(series, key=lambda one: float(one[0].replace("+Inf", "inf")))
    columns = round((span.end - span.start) / span.step) + 1
    grid = np.full((len(rows), columns), np.nan)
    for row, (_, _, values) in enumerate(rows):
        for at, value in values:
            grid[row, min(columns - 1, round((float(at) - span.start) / span.step))] = float(value)
    if cumulative and len(rows):
        grid = np.diff(grid, axis=0, prepend=0)
    axes.imshow(
        grid, aspect="auto", origin="lower", cmap="Greens", extent=(0, span.end - span.start, -0.5, len(rows) - 0.5)
    )
    shown = range(0, len(rows), max(1, len(rows) // 8))
    axes.set_yticks(list(shown), [rows[row][0] for row in shown])


def draw_numbers(series: list[Any], axes: Any) -> None:
    """Write the last value and the name of each series."""
    axes.axis("off")
    for row, (name, _, values) in enumerate(series[:4]):
        text = f"{float(values[-1][1]):g}  {name}"
        axes.text(0.02, 0.75 - 0.22 * row, text, fontsize=8, transform=axes.transAxes, wrap=True)


def picture(server: Prometheus, span: Span, out: Path) -> dict[str, int]:
    """Draw every panel into `out` and return the number of series by title."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = panels()
    rows = -(-len(shown) // COLUMNS)
    figure, grid = pyplot.subplots(rows, COLUMNS, figsize=(WIDTH * COLUMNS, HEIGHT * rows), layout="constrained")
    for axes in grid.flat[len(shown) :]:
        axes.axis("off")
    found = {panel["title"]: draw(panel, axes, server, span) for panel, axes in zip(shown, grid.flat, strict=False)}
    figure.suptitle(f"vllm-nld, {span.end - span.start:.0f} s", fontsize=11)
    figure.savefig(out, dpi=80)
    pyplot.close(figure)
    return found


def traffic(url: str, seconds: float) -> None:
    """Send held-out prompts for `seconds`, with 1, then 2, 4 and 12 concurrent clients."""
    import httpx

    prompts = [prompt for prompt in heldout() if not prompt.tools and not prompt.thinking]
    stop = threading.Event()

    def client(number: int) -> None:
        while not stop.is_set():
            prompt = prompts[number % len(prompts)]
            body = {"model": "nano", "messages": list(prompt.messages), "max_tokens": 160, "temperature": 0.0}
            body["vllm_xargs"] = ASKED[number % len(ASKED)]
            httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).raise_for_status()
            number += 5

    for clients in (1, 2, 4, 12):
        stop.clear()
        with ThreadPoolExecutor(clients) as pool:
            work = [pool.submit(client, number * 11) for number in range(clients)]
            time.sleep(seconds / 4)
            stop.set()
            for one in work:
                one.result()


def draw_nano(out: Path, seconds: float) -> dict[str, int]:
    """Serve nano under load and draw what Prometheus scraped."""
    options = ["--served-model-name", "nano", "--enforce-eager", "--max-num-seqs", "8"]
    options += ["--additional-config", json.dumps(SETTINGS)]
    with (
        tempfile.TemporaryDirectory() as scratch,
        Server(checkpoint_path(), options, log=Path(scratch) / "server.log") as served,
        prometheus(Path(scratch), served.url.removeprefix("http://"), factor=30) as server,
    ):
        start = time.time()
        traffic(served.url, seconds)
        time.sleep(2)
        return picture(server, Span(start, time.time(), 10), out)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench dashboard`."""
    parser.add_argument("--prometheus", metavar="URL", help="draw from this Prometheus instead of serving nano")
    parser.add_argument("--last", type=float, default=3600, help="seconds to draw, with --prometheus (default: 3600)")
    parser.add_argument(
        "--out", type=Path, default=Path("dashboard.png"), help="the image to write (default: dashboard.png)"
    )


def run(options: argparse.Namespace) -> dict[str, int]:
    """Draw the image and return the number of series by panel."""
    if options.prometheus:
        now = time.time()
        try:
            found = picture(Prometheus(options.prometheus), Span(now - options.last, now, 60), options.out)
        except (OSError, ValueError) as error:
            sys.exit(f"{options.prometheus} can't be asked: {error}. --prometheus takes its URL: http://HOST:9090")
    else:
        found = draw_nano(options.out, 20 if options.quick else 80)
    for title, count in found.items():
        print(f"{count:4} series  {title}")
    print(f"Written to {options.out}.")
    return found
