"""Writes heldout.jsonl, or checks it: `python -m vllm_nld.nano_vlm.split [--check]`."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from vllm_nld.nano_vlm.tasks import draw_heldout

FILE = Path(__file__).parent / "heldout.jsonl"


def render() -> str:
    """One JSON object a line."""
    return "".join(json.dumps(asdict(question), ensure_ascii=False) + "\n" for question in draw_heldout())


def main() -> int:
    """Write or check the file. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 if the file is not what the script draws")
    if parser.parse_args().check:
        return 0 if FILE.read_text(encoding="utf-8") == render() else 1
    FILE.write_text(render(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
