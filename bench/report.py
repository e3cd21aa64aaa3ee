"""The report: every benchmark once, one Markdown file, three plots, and README's figures. `make bench` runs it.

Results are kept in bench/results as JSON with machine, versions, flags and revision; report, plots and README are made
from them alone (`python -m bench.readme`), so they can be checked without measuring again.
"""

import argparse
from pathlib import Path
from typing import Any

from bench import modes_report, plots, roofline, steps
from bench.results import RESULTS, load

PLOTS = {
    "speedup": ("modes", plots.speedup),
    "accuracy": ("modes", plots.accuracy),
    "roofline": ("roofline", plots.roofline),
}
PARTS = {  # name of the result, and the command
    "modes": ("modes",),
    "steps-nano": ("steps", "--shape", "nano", "--blocks", "1", "32", "--steps", "30"),
    "steps-3b": ("steps", "--shape", "3b", "--blocks", "1", "8", "32"),
    "roofline": ("roofline",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="PART", help="these parts only")
    parser.add_argument("--fresh", action="store_true", help="forget what an interrupted run has measured")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the parts, then write everything that is made from them."""
    from bench.__main__ import main
    from bench.readme import write

    quick = ["--quick"] if options.quick else []
    for name in options.only or PARTS:
        fresh = ["--fresh"] if options.fresh and name == "modes" else []
        main([*PARTS[name], *quick, *fresh, "--json", str(RESULTS / f"{name}.json")])
    write()
    return {name: load(name) for name in PARTS}


def text() -> str:
    """The report in Markdown, from the kept results."""
    parts = ["# Benchmarks\n\nWritten by `make bench`; what is measured, and how, is said in [`bench`](..)."]
    if modes := load("modes"):
        parts += ["## Modes", modes_report.report(modes), picture("speedup"), picture("accuracy")]
    for name, title in (("steps-nano", "nano"), ("steps-3b", "a released shape")):
        if result := load(name):
            parts += [f"## Where a step's time goes: {title}", steps.report(result)]
    if result := load("roofline"):
        parts += [
            "## What other machines should reach",
            roofline.report(result),
            picture("roofline"),
            roofline.discussion(),
        ]
    return "\n\n".join(parts) + "\n"


def picture(name: str) -> str:
    return f"![{name}]({name}.svg)"


def drawn() -> dict[Path, tuple[plots.Plot, dict[str, Any]]]:
    """The plots that the kept results allow, by file."""
    found: dict[Path, tuple[plots.Plot, dict[str, Any]]] = {}
    for name, (source, plot) in PLOTS.items():
        if result := load(source):
            found[RESULTS / f"{name}.svg"] = (plot, result)
    return found
