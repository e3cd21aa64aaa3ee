"""Compares vLLM's model runners on the CPU: V2 with native kernels, V2 with interpreted kernels, and V1.

Each runner is an engine in a process of its own; all are loaded first, then take turns, so that a slow minute of the
machine hits all alike. Requests decode greedily (AR, no speculation), EOS ignored.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from vllm_nld.nano import checkpoint_path

RUNNERS = ("V2 native", "V2 interpreted", "V1")
CONCURRENCIES = (1, 8)
PROMPT_TOKENS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=checkpoint_path(), help="checkpoint folder (default: nano)")
    parser.add_argument("--eager", action="store_true", help="no torch.compile, for all runners")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Samples by runner: tokens/s at each concurrency and milliseconds of a step outside the model."""
    rounds, tokens = (2, 24) if options.quick else (7, 96)
    engines: dict[str, Engine] = {}
    try:
        for name in RUNNERS:  # one after another: engines that start together compete for ports and compile caches
            engines[name] = Engine(name, options.model, options.eager)
            engines[name].wait()
        speed: dict[str, dict[str, list[float]]] = {name: {str(c): [] for c in CONCURRENCIES} for name in RUNNERS}
        for turn in range(rounds):
            order = RUNNERS[turn % len(RUNNERS) :] + RUNNERS[: turn % len(RUNNERS)]
            for concurrency in CONCURRENCIES:
                for name in order:
                    speed[name][str(concurrency)].append(engines[name].ask("speed", concurrency, tokens))
        host = {name: engines[name].ask("host", 1, tokens) for name in RUNNERS}
    finally:
        for engine in engines.values():
            engine.close()
    result = {"model": str(options.model), "rounds": rounds, "tokens": tokens, "tokens_per_s": speed, "host_ms": host}
    print(table(result))
    return result


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table: medians, and in brackets the least and the most of all rounds."""
    lines = [
        "| runner | " + " | ".join(f"tokens/s at {c}" for c in CONCURRENCIES) + " | host ms a step at 1 |",
        "|" + " --- |" * (len(CONCURRENCIES) + 2),
    ]
    for name in RUNNERS:
        speeds = [spread(result["tokens_per_s"][name][str(c)], 0) for c in CONCURRENCIES]
        lines.append(f"| {name} | " + " | ".join([*speeds, spread(result["host_ms"][name], 2)]) + " |")
    for other in RUNNERS[1:]:
        ratios = []
        for concurrency in map(str, CONCURRENCIES):
            pairs = zip(
                result["tokens_per_s"][RUNNERS[0]][concurrency], result["tokens_per_s"][other][concurrency], strict=True
            )
            ratios.append(spread([ours / theirs for ours, theirs in pairs], 2))
        lines.append(f"| {RUNNERS[0]} / {other} | " + " | ".join(ratios) + " | |")
    return "\n".join(lines)


def spread(samples: list[float], digits: int) -> str:
    return f"{statistics.median(samples):.{digits}f} ({min(samples):.{digits}f}–{max(samples):.{digits}f})"


class Engine:
    """A runner in a child process, which answers one question at a time."""

    def __init__(self, name: str, model: Path, eager: bool) -> None:
        self._name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(name, model, eager, theirs), daemon=True)
        self._process.start()
        theirs.close()  # the child's end is the child's alone, so that its death ends our wait

    def wait(self) -> Any:
        """The next answer; raises RuntimeError where the child died."""
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"the engine of {self._name} died; its last words are above") from None

    def ask(self, *question: Any) -> Any:
        self._pipe.send(question)
        return self.wait()

    def close(self) -> None:
        self._process.terminate()
        self._process.join()


def serve(name: str, model: Path, eager: bool, pipe: Connection) -> None:
    """The child: load the engine, warm it up, answer."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the worker lives here, where its steps can be timed
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0" if name == "V1" else "1"
    if name == "V1":  # as without this plugin: where Triton has no "cpu" backend, vLLM takes its own C++ kernels
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
        additional_config={"nld": {"mode": "ar"}},
    )
    if name == "V2 interpreted":
        dispatch.uninstall()
    for concurrency in CONCURRENCIES * 2:
        decode(llm, concurrency, 16)
    pipe.send("ready")
    while True:
        question, concurrency, tokens = pipe.recv()
        pipe.send(decode(llm, concurrency, tokens) if question == "speed" else host_milliseconds(llm, tokens))


def decode(llm: Any, concurrency: int, tokens: int) -> float:
    """Output tokens per second of `concurrency` requests that start together."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": [10 + i + j for j in range(PROMPT_TOKENS)]} for i in range(concurrency)]
    begin = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    return sum(len(output.outputs[0].token_ids) for output in outputs) / seconds


def host_milliseconds(llm: Any, tokens: int) -> list[float]:
    """Milliseconds of each decode step at concurrency 1 that are not spent in the model's forward or its logits."""
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
    return samples[2:-1]  # without the prefill and the last step, which frees the request


class Clock:
    """Adds up the time spent in functions."""

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
