"""Writes heldout.jsonl, or checks it: `python -m vllm_nld.nano_vlm.split [--check]`."""

from pathlib import Path

from vllm_nld.nano import split
from vllm_nld.nano_vlm.tasks import draw_heldout

FILE = Path(__file__).parent / "heldout.jsonl"


def render() -> str:
    """One JSON object a line."""
    return split.render(draw_heldout())


if __name__ == "__main__":
    raise SystemExit(split.write_or_check(FILE, render(), __doc__))
