"""Compares vLLM's model runners on the CPU: V2 with native kernels, V2 with interpreted kernels, and V1.

V2 with native kernels runs twice: in an AR-only engine, and in an engine that can speculate, where AR requests should
be no slower. Each runner is an engine in its own process; all are loaded first and then alternate, so that a slow
minute of the machine affects them equally, and those that wait are stopped. Requests decode greedily (AR, no
speculation) and ignore EOS.
"""

import argparse
import itertools
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.engines import engines
from vllm_nld.evaluate.spread import interval, ratios, spread
from vllm_nld.evaluate.spread import table as markdown
from vllm_nld.nano import checkpoint_path
from vllm_nld.tools.provenance import provenance

SPECULATING = "V2 native, speculating"
INTERPRETED = "V2 interpreted"  # slower than all others together, so it runs once per round
RUNNERS = ("V2 native", SPECULATING, INTERPRETED, "V1")
CONCURRENCIES = (1, 8)
PROMPT_TOKENS = 16
WARM_UP_TOKENS = 8  # per request, untimed, when a runner's turn begins


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=checkpoint_path(), help="checkpoint folder (default: nano)")
    parser.add_argument("--eager", action="store_true", help="no torch.compile, for all runners")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Returns samples by runner: tokens/s at each concurrency, and milliseconds per step outside the model."""
    rounds, runs, tokens = (2, 1, 24) if options.quick else (7, 5, 96)
    with engines() as start:  # one after another, because engines that start together compete for ports and caches
        running = {name: start(name, serve, name, options.model, options.eager) for name in RUNNERS}
        speed: dict[str, dict[str, list[float]]] = {name: {str(c): [] for c in CONCURRENCIES} for name in RUNNERS}
        for turn, run_, concurrency in itertools.product(range(rounds), range(runs), CONCURRENCIES):
            first, warm_up = (turn + run_) % len(RUNNERS), ("speed", concurrency, WARM_UP_TOKENS)
            for name in RUNNERS[first:] + RUNNERS[:first]:
                if run_ == 0 or name != INTERPRETED:
                    sample = running[name].ask("speed", concurrency, tokens, warm_up=warm_up)
                    speed[name][str(concurrency)].append(sample)
        host = {name: running[name].ask("host", 1, tokens, warm_up=("speed", 1, WARM_UP_TOKENS)) for name in RUNNERS}
    result = {
        "provenance": provenance(),
        "model": "nano" if options.model == checkpoint_path() else options.model.name,
        "rounds": rounds * runs,
        "tokens": tokens,
        "tokens_per_s": speed,
        "host_ms": host,
    }
    print(table(result))
    return result


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table: medians with their range, ratios with their confidence interval."""
    speed = result["tokens_per_s"]
    rows = []
    for name in RUNNERS:
        speeds = [spread(speed[name][str(c)], 0) for c in CONCURRENCIES]
        rows.append([name, *speeds, spread(result["host_ms"][name], 2)])
    for other in RUNNERS[1:]:
        pairs = [(speed[RUNNERS[0]][str(c)], speed[other][str(c)]) for c in CONCURRENCIES]
        gains = [ratios(ours[:: len(ours) // len(theirs)], theirs) for ours, theirs in pairs]
        rows.append([f"{RUNNERS[0]} / {other}", *(interval(gain, 2) for gain in gains), ""])
    return markdown(["runner", *(f"tokens/s at {c}" for c in CONCURRENCIES), "host ms per step at 1"], rows)


def serve(name: str, model: Path, eager: bool, pipe: Connection) -> None:
    """The child process: load the engine, warm it up and answer questions."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # keeps the worker in this process, where it can be timed
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0" if name == "V1" else "1"
    if name == "V1":  # as without this plugin: if Triton has no "cpu" backend, vLLM uses its own C++ kernels
        os.environ["TRITON_BACKENDS_IN_TREE"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM

    from vllm_nld.triton_cpu import dispatch

    llm = LLM(
        str(model),
        max_num_seqs=max(CONCURRENCIES),
        max_model_len=256,
        enforce_eager=eager,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        additional_config={"nld": {} if name == SPECULATING else {"mode": "ar"}},
    )
    if name == INTERPRETED:
        dispatch.uninstall()
    for concurrency in CONCURRENCIES * 2:
        decode(llm, concurrency, 16)
    pipe.send("ready")
    while True:
        question, concurrency, tokens = pipe.recv()
        pipe.send(decode(llm, concurrency, tokens) if question == "speed" else host_milliseconds(llm, tokens))


def decode(llm: Any, concurrency: int, tokens: int) -> float:
    """Output tokens per second of `concurrency` requests started together."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    params.extra_args = {"nld_mode": "ar"}
    prompts = [{"prompt_token_ids": [10 + i + j for j in range(PROMPT_TOKENS)]} for i in range(concurrency)]
    begin = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    return sum(len(output.outputs[0].token_ids) for output in outputs) / seconds


def host_milliseconds(llm: Any, tokens: int) -> list[float]:
    """Milliseconds of each decode step at concurrency 1 spent outside the model's forward and logits."""
    clock = Clock()
    model = llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
    kind = type(model)
    saved = kind.__call__, kind.compute_logits
    kind.__call__, kind.compute_logits = map(clock.timed, saved)
    step = llm.llm_engine.step
    samples: list[float] = []

    def timed_step(*args: Any, **options: Any) -> Any:
        clock.seconds, begin = 0.0, time.perf_counter()
        result = step(*args, **options)
        samples.append((time.perf_counter() - begin - clock.seconds) * 1e3)
        return result

    llm.llm_engine.step = timed_step
    try:
        decode(llm, 1, tokens)
    finally:
        kind.__call__, kind.compute_logits = saved
        del llm.llm_engine.step
    return samples[2:-1]  # drop the prefill, and the last step, which frees the request


class Clock:
    """Sums the time spent in wrapped functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Any) -> Any:
        def timed(*args: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed
