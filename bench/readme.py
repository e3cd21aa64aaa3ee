"""Writes README.md's figures from what the commands measured: `python -m bench.readme`, compared with `--check`.

The modes' figures are the nano card's (`vllm-nld nano eval --card`); the runners' are the last kept result of
`python -m bench runners --json bench/results/runners.json`. Nothing in between is typed by hand.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from bench import runners
from vllm_nld.nano import checkpoint_path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- figures:begin -->\n", "<!-- figures:end -->"


def modes_table() -> str:
    """The first table of the card's figures, with the line that says how they were measured."""
    card = (checkpoint_path() / "README.md").read_text(encoding="utf-8")
    figures = card.split("<!-- figures:")[1].split("-->\n", 1)[1]
    said, table = figures.split("\n\n")[:2]
    return f"The reference's loops on the shipped checkpoint. {said.strip()}\n\n{table.strip()}"


def runners_table() -> str:
    """The kept result of `bench runners`; empty where none is kept."""
    if not (RESULTS / "runners.json").exists():
        return ""
    result: dict[str, Any] = json.loads((RESULTS / "runners.json").read_text(encoding="utf-8"))
    said = (
        "vLLM's model runners on a 2-core CPU, AR, the shipped checkpoint (`python -m bench runners`; median, range).\n"
        "V1 runs as vLLM has it without this plugin's Triton backend, with its own C++ kernels:"
    )
    return f"\n{said}\n\n{runners.table(result)}\n"


def render() -> str:
    """README.md's block of figures."""
    return f"{BEGIN}## Measured\n\n{modes_table()}\n{runners_table()}{END}"


def main() -> None:
    """Write the block, or compare it; exit status 1 where it differs."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 if README.md states other figures")
    check = parser.parse_args().check
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    wanted = before + render() + rest.split(END, 1)[1]
    if not check:
        README.write_text(wanted, encoding="utf-8")
    elif wanted != text:
        raise SystemExit("README.md states other figures than were measured: python -m bench.readme")


if __name__ == "__main__":
    main()
