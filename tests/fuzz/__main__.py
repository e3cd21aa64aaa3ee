"""The command line: see the package."""

import argparse
import asyncio
import contextlib
import json
import math
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import tests.fuzz
from tests.fuzz.case import NAMES
from tests.fuzz.client import Client
from tests.fuzz.draw import CONTEXT, GROUPS
from tests.fuzz.fuzzer import Fuzzer, Report, summary
from vllm_nld.nano import checkpoint_path
from vllm_nld.tools.server import Server

MARKERS = {"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}
# The worker runs in the engine's process, as on a GPU, which saves a process.
ARGUMENTS = ["--served-model-name", *NAMES, "--enable-scale-out"]
ARGUMENTS += ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "16", "--max-model-len", str(CONTEXT)]
ARGUMENTS += ["--distributed-executor-backend", "vllm.v1.executor.uniproc_executor.UniProcExecutor"]
ARGUMENTS += ["--additional-config", json.dumps({"nld": {"groups": GROUPS}})]
ARGUMENTS += ["--reasoning-parser", "deepseek_v3", "--reasoning-config", json.dumps(MARKERS)]
ARGUMENTS += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]


@contextlib.contextmanager
def served(log: Path) -> Iterator[Server]:
    """A server on nano that has all modes, endpoints and parsers."""
    with Server(checkpoint_path(), ARGUMENTS, log=log) as server:
        yield server


async def fuzz(url: str, seed: int, seconds: float = math.inf, requests: float = math.inf, first: int = 0) -> Report:
    """Fuzz the server at a URL."""
    client = Client(url)
    try:
        return await Fuzzer(client, seed).run(seconds, requests, first)
    finally:
        await client.close()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=tests.fuzz.__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--requests", type=float, default=math.inf)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first case: a multiple of 24 repeats a round"
    )
    parser.add_argument("--url", help="a running server; the default starts one")
    parser.add_argument("--log", type=Path, help="where the started server writes its log")
    args = parser.parse_args()
    if math.isinf(args.minutes) and math.isinf(args.requests):
        args.minutes = 10.0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server it started ends with it
    with contextlib.ExitStack() as stack:
        log = args.log or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "log"
        url = args.url or stack.enter_context(served(log)).url
        report = asyncio.run(fuzz(url, args.seed, args.minutes * 60, args.requests, args.first))
    print(json.dumps(summary(report)))
    return 1 if report.failures or not report.answered else 0


if __name__ == "__main__":
    sys.exit(main())
