"""How fast `auto` falls back to AR when drafts turn bad, and how fast it speeds up again afterwards.

Two engines with the same flags decode the same traffic; in one, requests ask for `auto`, in the other for `ar`. Drafts
turn bad, then good again, over and over; after each change both engines start with new requests. The engines take turns
of a few steps each, so that their speeds are compared at the same number of steps since the change. Equal engines are
not equally fast, by some percent, so they swap modes after each cycle, and two cycles make one ratio.
"""

import argparse
import math
import os
import statistics
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.engines import engines
from bench.traffic import GOOD, TROUBLES, Driver
from vllm_nld.evaluate.spread import interval, ratios, table
from vllm_nld.nano import checkpoint_path
from vllm_nld.tools.provenance import describe, provenance

AUTO, AR = "auto", "ar"  # what the requests of an engine ask for
WINDOW = 10  # steps of a turn
BAD_ENDS = (10, 20, 30, 40, 50, 100, 150)  # steps since drafts turned bad, at which a column of the table ends
GOOD_ENDS = (50, 100, 150, 200, 300, 400)  # since they turned good
BETTER, WORSE = "drafts turn good", "drafts turn bad"
PHASES = {WORSE: BAD_ENDS, BETTER: GOOD_ENDS}
WARM_UP = 150  # steps of good traffic after each swap
SPAN = 50  # steps over which a speed is compared with its goal

Window = tuple[float, float]  # output tokens and seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=checkpoint_path(), help="checkpoint folder (default: nano)")
    parser.add_argument("--requests", type=int, default=4, help="requests that decode at a time (default: 4)")
    parser.add_argument("--cycles", type=int, help="how often drafts turn bad and good again (default: 30, quick: 2)")
    parser.add_argument(
        "--trouble", nargs="+", choices=list(TROUBLES), default=list(TROUBLES), help="what makes them bad"
    )
    parser.add_argument("--eager", action="store_true", help="no torch.compile (quick: always)")
    parser.add_argument("--dtype", default="auto", help="of the weights (default: the checkpoint's)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the report and return every window."""
    cycles = options.cycles or (2 if options.quick else 30)
    with engines() as start:
        arguments = (options.model, options.requests, options.eager or options.quick, options.dtype)
        both = [start(name, serve, *arguments) for name in ("first", "second")]
        windows = {name: measure(both, name, cycles) for name in options.trouble}
    result = {
        "provenance": provenance(),
        "model": "nano" if options.model == checkpoint_path() else options.model.name,
        "dtype": options.dtype,
        "requests": options.requests,
        "cycles": cycles,
        "windows": windows,
    }
    print(report(result))
    return result


def measure(both: Sequence[Any], trouble: str, cycles: int) -> dict[str, list[dict[str, list[Window]]]]:
    """For each phase, the windows of every cycle: by mode, in the order of the steps."""
    found: dict[str, list[dict[str, list[Window]]]] = {phase: [] for phase in PHASES}
    for cycle in tqdm(range(cycles), desc=trouble, unit="cycle"):
        pair = dict(zip((AUTO, AR), both[:: -1 if cycle % 2 else 1], strict=True))
        for mode, engine in pair.items():
            engine.ask("traffic", (GOOD, mode))
            engine.ask("steps", WARM_UP)
        for phase, traffic in ((WORSE, trouble), (BETTER, GOOD)):
            for mode, engine in pair.items():
                engine.ask("traffic", (traffic, mode))
            windows: dict[str, list[Window]] = {mode: [] for mode in pair}
            for turn in range(PHASES[phase][-1] // WINDOW):
                for mode in alternating(pair, cycle + turn):
                    windows[mode].append(pair[mode].ask("steps", WINDOW))
            found[phase].append(windows)
    return found


def alternating(names: Sequence[str] | dict[str, Any], turn: int) -> list[str]:
    """The names in order, or in reverse in every second turn."""
    return list(names)[:: -1 if turn % 2 else 1]


# The report


def report(result: dict[str, Any]) -> str:
    """Markdown: speed of `auto` relative to AR by steps since the change, for each trouble."""
    model = result["model"] if result.get("dtype", "auto") == "auto" else f"{result['model']} in {result['dtype']}"
    parts = [
        f"{model}, {result['requests']} requests at a time, {result['cycles']} changes each way. Tokens/s of "
        f"`auto`, AR = 1, by steps since the change. {describe(result['provenance'])}"
    ]
    for trouble, phases in result["windows"].items():
        for phase, cycles in phases.items():
            ends = PHASES[phase]
            parts += [f"{trouble.capitalize()}, {phase}:", speeds_table(cycles, ends), verdict(phase, cycles)]
    return "\n\n".join(parts)


def speeds_table(cycles: Sequence[dict[str, list[Window]]], ends: Sequence[int]) -> str:
    begins = (0, *ends[:-1])
    header = ["steps", *(f"{begin}–{end}" for begin, end in zip(begins, ends, strict=True))]
    cells = [interval(gains(cycles, begin, end), 3) for begin, end in zip(begins, ends, strict=True)]
    return table(header, [["auto / AR", *cells]])


def gains(cycles: Sequence[dict[str, list[Window]]], begin: int, end: int) -> list[float]:
    """The ratio of tokens/s of every two cycles, between two numbers of steps since the change."""
    ours, theirs = ([speed(c[mode][begin // WINDOW : end // WINDOW]) for c in cycles] for mode in (AUTO, AR))
    each = ratios(ours, theirs)
    return [math.sqrt(one * other) for one, other in zip(each[::2], each[1::2], strict=False)] or each


def speed(windows: Sequence[Window]) -> float:
    tokens, seconds = map(sum, zip(*windows, strict=True))
    return tokens / seconds


def verdict(phase: str, cycles: Sequence[dict[str, list[Window]]]) -> str:
    """From which step on `auto` is as fast as it gets, measured over the next SPAN steps, within 3 %."""
    last = PHASES[phase][-1]
    goal = 1.0 if phase == WORSE else statistics.median(gains(cycles, last // 2, last))
    what = "AR's speed" if phase == WORSE else f"its speed of the last {last // 2} steps (× {goal:.2f})"
    for begin in range(0, last - SPAN + 1, WINDOW):
        if statistics.median(gains(cycles, begin, begin + SPAN)) >= 0.97 * goal:
            return f"Within 3 % of {what} from step {begin} on."
    return f"Not within 3 % of {what} in {last} steps."


# The child process


def serve(model: Path, requests: int, eager: bool, dtype: str, pipe: Connection) -> None:
    """Load the engine and answer questions."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # step by step, and the adapter is within reach
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM

    options: dict[str, Any] = {"max_num_seqs": requests, "max_model_len": 1024, "enable_prefix_caching": False}
    llm = LLM(str(model), enforce_eager=eager, dtype=dtype, **options)
    driver = Driver(llm, AUTO, requests)
    answers: dict[str, Callable[[Any], Any]] = {"traffic": lambda to: driver.turn_to(*to), "steps": driver.steps}
    pipe.send("ready")
    while True:
        question, argument = pipe.recv()
        pipe.send(answers[question](argument))
