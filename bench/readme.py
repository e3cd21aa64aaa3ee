"""Writes what is made from the kept results: README.md's figures, the report and its plots; `--check` compares.

The results are those of `make bench` and of `python -m bench runners --json bench/results/runners.json`; nano's own
figures are its card's (`vllm-nld nano eval --card`). Nothing in between is typed by hand.
"""

import argparse
from pathlib import Path

from bench import modes_report, plots, report, runners
from bench.results import RESULTS, load
from vllm_nld.nano import checkpoint_path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
REPORT = RESULTS / "report.md"
BEGIN, END = "<!-- figures:begin -->\n", "<!-- figures:end -->"


def render() -> str:
    """README.md's block of figures."""
    parts = ["## Measured", served() or card_table(), runners_table()]
    return BEGIN + "\n\n".join(part for part in parts if part) + "\n" + END


def served() -> str:
    """The modes as served, beside their peers; empty where no result is kept."""
    if not (modes := load("modes")):
        return ""
    at = "bench/results"
    return (
        f"`make bench` ([all figures]({at}/report.md)): {modes_report.said(modes)}\n\n{modes_report.summary(modes)}\n\n"
        f"![speed-up by concurrency and mode]({at}/speedup.svg)\n"
        f"![accuracy against tokens a forward]({at}/accuracy.svg)"
    )


def card_table() -> str:
    """The first table of the card's figures, with the line that says how they were measured."""
    card = (checkpoint_path() / "README.md").read_text(encoding="utf-8")
    figures = card.split("<!-- figures:")[1].split("-->\n", 1)[1]
    said, table = figures.split("\n\n")[:2]
    return f"The reference's loops on the shipped checkpoint. {said.strip()}\n\n{table.strip()}"


def runners_table() -> str:
    """The kept result of `bench runners`; empty where none is kept."""
    if not (result := load("runners")):
        return ""
    said = (
        "vLLM's model runners on a 2-core CPU, AR, the shipped checkpoint (`python -m bench runners`; median, range).\n"
        "V1 runs as vLLM has it without this plugin's Triton backend, with its own C++ kernels:"
    )
    return f"{said}\n\n{runners.table(result)}"


def wanted() -> dict[Path, str]:
    """What each text file should hold."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    texts = {README: before + render() + rest.split(END, 1)[1]}
    return texts | {REPORT: report.text()} if load("modes") else texts


def write() -> None:
    """Write texts and plots."""
    for file, text in wanted().items():
        file.write_text(text, encoding="utf-8")
    for file, (plot, result) in report.drawn().items():
        plots.draw(plot, result, file)


def stale() -> list[Path]:
    """Files that say something else than the results."""
    texts = [file for file, text in wanted().items() if not file.exists() or file.read_text(encoding="utf-8") != text]
    return texts + [file for file, (plot, result) in report.drawn().items() if not plots.is_current(plot, result, file)]


def main() -> None:
    """Write, or compare; exit status 1 where something differs."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 if a file states other figures")
    if not parser.parse_args().check:
        write()
    elif files := stale():
        names = ", ".join(str(file.relative_to(ROOT)) for file in files)
        raise SystemExit(f"other figures were measured than these state: {names}; run python -m bench.readme")


if __name__ == "__main__":
    main()
