"""The cost of metrics and of `auto`: the time that our hooks take in each decode step, compared with the step itself.

    python -m bench overhead

The engine core's part of the metrics (the scheduler's records, the worker's report) and the choice of block lengths are
in every step. The API server's part (requests, Prometheus) runs in parallel to the engine in a real server, so it is
listed separately. All are timed hook by hook in a running engine on nano, because the difference between two whole runs
would be noise.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from vllm_nld.evaluate.spread import table
from vllm_nld.nano import checkpoint_path, heldout

SIZES = (1, 8, 64)  # concurrent requests
CORE, AUTO, SERVER = "metrics, engine core", "auto", "metrics, API server"
GROUPS = (CORE, AUTO, SERVER)


class Clock:
    """Seconds that each group of hooks has spent in the current step."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(GROUPS, 0.0)

    def timed(self, group: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the hook so that its time is added to the group's."""

        def run(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return hook(*args, **kwargs)
            finally:
                self.spent[group] += time.perf_counter() - begin

        return run


def install(clock: Clock) -> None:
    """Time every hook in this process."""
    from spec_worker import report
    from spec_worker.auto import Auto
    from spec_worker.scheduler import ModeScheduler
    from vllm_nld.metrics.exporter import NldStatLogger
    from vllm_nld.metrics.requests import RequestTally
    from vllm_nld.metrics.rounds import RoundLog

    for owner, name, group in (
        (RoundLog, "begin", CORE),
        (RoundLog, "note", CORE),
        (RoundLog, "take", CORE),
        (report, "report", CORE),
        (ModeScheduler, "_choose_length", AUTO),
        (Auto, "note", AUTO),
        (Auto, "finish", AUTO),
        (RequestTally, "step", SERVER),
        (NldStatLogger, "record", SERVER),
    ):
        setattr(owner, name, clock.timed(group, getattr(owner, name)))


def measure(llm: Any, clock: Clock, requests: int, tokens: int) -> dict[str, float]:
    """Decode `requests` prompts together and return the mean step and hook times, in ms: not every step decides."""
    from vllm import SamplingParams

    core = llm.llm_engine
    prompts = [prompt for prompt in heldout() if not prompt.tools and not prompt.thinking]
    for number in range(requests):
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        text = prompts[number % len(prompts)].messages[-1]["content"]
        core.add_request(f"{requests}-{number}-{time.time()}", {"prompt": text}, params)
    steps: list[tuple[float, ...]] = []
    while core.has_unfinished_requests():
        clock.spent = dict.fromkeys(GROUPS, 0.0)
        begin = time.perf_counter()
        core.step()
        steps.append((time.perf_counter() - begin, *clock.spent.values()))
    step, *groups = (1000 * statistics.fmean(column) for column in zip(*steps, strict=True))
    return {"requests": requests, "steps": len(steps), "step": step, **dict(zip(GROUPS, groups, strict=True))}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure several batch sizes, after a warm-up."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # one process, so that every hook can be wrapped
    from vllm import LLM

    from vllm_nld.metrics.exporter import NldStatLogger

    llm = LLM(
        str(checkpoint_path()),
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=max(SIZES),
        disable_log_stats=False,
    )
    llm.llm_engine.logger_manager.stat_loggers.append(NldStatLogger(llm.llm_engine.vllm_config, [0]))  # type: ignore[union-attr]  # made with log_stats
    clock = Clock()
    install(clock)
    measure(llm, clock, 4, 32)
    rows = [measure(llm, clock, size, 32 if options.quick else 128) for size in SIZES]
    print(report(rows))
    return {"rows": rows}


def report(rows: list[dict[str, float]]) -> str:
    """Markdown: milliseconds of a step and of each group's hooks, with their share of it."""
    lines = []
    for row in rows:
        shares = [f"{row[group]:.4f} ({row[group] / row['step']:.2%})" for group in GROUPS]
        lines.append([f"{row['requests']:.0f}", f"{row['step']:.2f}", *shares])
    return table(["requests", "step, ms", *(f"{group}, ms (share)" for group in GROUPS)], lines)
