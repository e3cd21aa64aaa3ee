"""The benchmarks' command line: `python -m bench NAME [--quick] [--json FILE]`.

A benchmark is a module of this package with a docstring, `add_arguments(parser)` and `run(options)`, which prints its
result and returns it as plain data.
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
    "modes": "every mode and its peers in `vllm serve`: tokens/s, latencies, acceptance, accuracy",
    "steps": "the time of a decode step: forwards, draft LoRA, sampling, host; by batch and block length",
    "first_token": "what a request waits for until its first token: HTTP, tokeniser, queue, prefill, first draft pass",
    "auto": "the controller of mode auto, simulated against published forward times",
    "roofline": "the predicted speed of every mode on several machines, against published and measured figures",
    "plan": "`vllm-nld plan`'s simulation against a real server: P50, P95, tokens/s",
    "groups": "tokens per forward and rows of quadratic mode, by groups of masks, and with draft trees",
    "alarms": "how often `vllm-nld evaluate` calls AR different from AR, and how often it finds a wrong mode",
    "recovery": "how fast `auto` falls back to AR when drafts turn bad, and speeds up again afterwards",
    "runners": "AR tokens/s of vLLM's model runners on the CPU, and host time per decode step",
    "report": "run what the report quotes; write it, its plots and the README's figures",
    "overhead": "the time that metrics and `auto` take in a decode step",
    "gpu_check": "the first hour on a GPU: is everything right, and what does it cost?",
    "dashboard": "draw the Grafana dashboard's panels from a real Prometheus into one image",
}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run one benchmark; returns its result."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="name", required=True)
    for name, summary in BENCHMARKS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument(
            "--quick", action="store_true", help="fewer rounds and tokens: to check that it works, not for results"
        )
        command.add_argument("--json", type=Path, metavar="FILE", help="also write every sample to FILE")
        importlib.import_module(f"bench.{name}").add_arguments(command)
    options = parser.parse_args(arguments)
    result: dict[str, Any] = importlib.import_module(f"bench.{options.name}").run(options)
    if options.json:
        options.json.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # exit normally, so that servers and engines stop too
    main()
