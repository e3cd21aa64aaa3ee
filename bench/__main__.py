"""The benchmarks' command line: `python -m bench NAME [--quick] [--json FILE]`.

A benchmark is a module of this package with a docstring, `add_arguments(parser)`, and `run(options)`, which returns its
result as plain data after printing it.
"""

import argparse
import importlib
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BENCHMARKS = {
    "modes": "every mode and its peers behind `vllm serve`: tokens/s, latencies, acceptance, right answers",
    "steps": "where a decode step's time goes: forwards, draft LoRA, sampling, host; by batch and block length",
    "roofline": "what every mode should reach on which machine, beside what was published and measured",
    "runners": "AR tokens/s of vLLM's model runners on the CPU, and the host time of a decode step",
    "report": "modes, steps and roofline, one after another; writes the report, its plots and README's figures",
    "overhead": "what the metrics cost in a decode step",
    "dashboard": "the Grafana dashboard's panels, drawn from a real Prometheus into a picture",
}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run one benchmark; returns its result."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="name", required=True)
    for name, summary in BENCHMARKS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("--quick", action="store_true", help="fewer rounds and tokens: a check, not a result")
        command.add_argument("--json", type=Path, metavar="FILE", help="also write every sample to FILE")
        importlib.import_module(f"bench.{name}").add_arguments(command)
    options = parser.parse_args(arguments)
    result: dict[str, Any] = importlib.import_module(f"bench.{options.name}").run(options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an ordinary end, so that servers and engines end too
    main()
