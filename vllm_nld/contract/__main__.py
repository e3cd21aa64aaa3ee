"""Records that somebody has read how a release's functions behave, see `bodies`.

python -m vllm_nld.contract 0.33.0 vllm-0.33.0-….whl
"""

import argparse
from pathlib import Path

from vllm_nld.contract import Sources, bodies


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vllm_nld.contract", description="Record that a release was read.")
    parser.add_argument("release", help="such as 0.33.0")
    parser.add_argument("source", type=Path, help="its wheel, or a folder with its source")
    args = parser.parse_args()
    bodies.record(args.release, Sources(args.source))


if __name__ == "__main__":
    main()
