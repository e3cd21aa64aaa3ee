"""Writes heldout.jsonl, or checks it: `python -m vllm_nld.nano.split [--check]`.

The file is what `draw_heldout` draws; it ships so that a client needs neither the tasks nor this module.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vllm_nld.nano.prompts import draw_heldout

FILE = Path(__file__).parent / "heldout.jsonl"


def render(prompts: Iterable[Any] | None = None) -> str:
    """One JSON object a line for each prompt, a dataclass; nano's by default."""
    drawn = draw_heldout() if prompts is None else prompts
    return "".join(json.dumps(asdict(prompt), ensure_ascii=False) + "\n" for prompt in drawn)


def write_or_check(file: Path, text: str, description: str | None) -> int:
    """The command line: write or check the file. Returns the exit status."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true", help="exit 1 if the file is not what the script draws")
    if parser.parse_args().check:
        return 0 if file.read_text(encoding="utf-8") == text else 1
    file.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(write_or_check(FILE, render(), __doc__))
