"""Generates README.md's figures, parts of docs/, the report and its plots; `--check` compares them.

The results come from `make bench`, `python -m bench runners --json bench/results/runners.json` and, on GPUs, `make
gpu-check`; nano's own figures come from its model card (`vllm-nld nano eval --card`). None are typed by hand.
"""

import argparse
from pathlib import Path

from bench import docs, modes_report, plots, report
from bench.results import RESULTS, load
from vllm_nld.nano import checkpoint_path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
REPORT = RESULTS / "report.md"


def render() -> str:
    """README.md's figures section."""
    return "## Measured\n\n" + (served() or card_table())


def served() -> str:
    """The served modes compared with their peers; empty if no result is stored."""
    if not (modes := load("modes")):
        return ""
    at = "bench/results"
    return (
        f"`make bench` ([all figures]({at}/report.md)): "
        f"{modes_report.method(modes)}\n\n{modes_report.summary(modes)}\n\n{adaptive()}"
        f"![speed-up by concurrency and mode]({at}/speedup.svg)\n"
        f"![accuracy against tokens per forward]({at}/accuracy.svg)"
    )


def adaptive() -> str:
    """`auto` by load, compared with the best fixed setting and with AR; empty if no result is stored."""
    if not (result := load("modes-auto")):
        return ""
    rows = "\n".join(modes_report.auto_table(result).splitlines()[:4])  # the others are in the report
    return (
        f"`auto` by number of clients, and under a load that moves from 1 to 32 and back, {result['plan']['rounds']} "
        f"rounds: tokens/s as a ratio to those of the best fixed block length, and of AR.\n\n{rows}\n\n"
    )


def card_table() -> str:
    """The first table of the card's figures, with the line on how they were measured."""
    card = (checkpoint_path() / "README.md").read_text(encoding="utf-8")
    figures = card.split("<!-- figures:")[1].split("-->\n", 1)[1]
    said, table = figures.split("\n\n")[:2]
    return f"The reference's loops on the shipped checkpoint. {said.strip()}\n\n{table.strip()}"


def wanted() -> dict[Path, str]:
    """The expected content of each text file."""
    texts = {README: docs.fill(README.read_text(encoding="utf-8"), "figures", render()), **docs.pages()}
    return texts | {REPORT: report.text()} if load("modes") else texts


def write() -> None:
    """Write texts and plots."""
    for file, text in wanted().items():
        file.write_text(text, encoding="utf-8")
    for file, (plot, result) in report.drawn().items():
        plots.draw(plot, result, file)


def stale() -> list[Path]:
    """Files that don't match the results."""
    texts = [file for file, text in wanted().items() if not file.exists() or file.read_text(encoding="utf-8") != text]
    return texts + [file for file, (plot, result) in report.drawn().items() if not plots.is_current(plot, result, file)]


def main() -> None:
    """Write the files, or with --check exit with status 1 if one differs."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 if a file doesn't match the results")
    if not parser.parse_args().check:
        write()
    elif files := stale():
        names = ", ".join(str(file.relative_to(ROOT)) for file in files)
        raise SystemExit(f"these files don't match the results: {names}; run python -m bench.readme")


if __name__ == "__main__":
    main()
