"""Compares `vllm-nld plan`'s simulation with a real server: P50, P95 and tokens/s under open-loop loads.

    python -m bench plan

One server of nano answers everything. First it is measured as a plan's inputs are: step times in a closed loop at fixed
concurrencies and block lengths, prompts alone, and acceptance by position on half of the questions. Then the other half
arrives as a Poisson process at several loads, in each mode, and the simulation is given the same arrivals and lengths.
Nothing is fitted to what it is compared with.
"""

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench import quality
from bench.contenders import COUNTED, linear, request_body
from bench.load import GREEDY, ask_all, client
from bench.prompts import Question, read
from vllm_nld.evaluate.spread import table
from vllm_nld.nano import checkpoint_path
from vllm_nld.plan.acceptance import ANY, Acceptance
from vllm_nld.plan.figures import LATENCIES, Figures, percentile
from vllm_nld.plan.fleet import ROUTERS, simulate
from vllm_nld.plan.policies import POLICIES
from vllm_nld.plan.replica import Limits, Replica
from vllm_nld.plan.steps import Curves, Roofline
from vllm_nld.plan.traffic import Request
from vllm_nld.roofline.devices import Device, cpu_rates
from vllm_nld.roofline.shapes import nano
from vllm_nld.tools.provenance import describe, provenance
from vllm_nld.tools.server import Server

MODES = {"ar": 1, "linear": 16, "auto": 32}  # and the block length
BLOCKS, COUNTS = (1, 8, 16, 32), (1, 4, 12, 32)
PROMPTS = (60, 240, 480)  # tokens
LOADS = (0.3, 0.6, 1.2)  # of what the server could decode; only beyond 1 do tokens/s say more than the arrivals
TOKENS = 192  # output tokens of the requests that measure steps
SEQS, BUDGET = 32, 4096
FLAGS = ["--max-num-seqs", str(SEQS), "--max-num-batched-tokens", str(BUDGET), "--max-model-len", "1024"]
FLAGS += ["--no-enable-prefix-caching", "--served-model-name", "bench", *COUNTED]
CLOSE = 0.2  # relative error that counts as agreement


@dataclass(frozen=True, slots=True)
class Size:
    """How much to measure."""

    counts: tuple[int, ...] = COUNTS
    blocks: tuple[int, ...] = BLOCKS
    loads: tuple[float, ...] = LOADS
    requests: int = 200  # of each load
    repeats: int = 3  # of a prompt alone, and of requests per client in a closed loop


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--requests", type=int, help="per mode and load (default: 200, quick: 30)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-plan"), help="folder for the server's log")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, simulate, compare."""
    from transformers import AutoTokenizer

    from vllm_nld.model.configs import register_configs

    register_configs()  # the tokenizer's loader also reads config.json
    options.out.mkdir(parents=True, exist_ok=True)
    size = Size((1, 8), (1, 32), (0.5,), options.requests or 30, 1) if options.quick else Size()
    size = size if options.quick or not options.requests else Size(requests=options.requests)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    questions = read(tokenizer, None)
    base = Roofline(nano(), Device("this CPU", *cpu_rates(), launch=0.0, host=0.0))
    with Server(checkpoint_path(), FLAGS, log=options.out / "server.log") as server:
        bench = Bench(server.url, tokenizer, questions[1::2], size, options.seed)
        bench.warm_up()
        curves = bench.curves(base)
        acceptance = accepted(server.url, questions[::2])
        loads = [(mode, load) for mode in options.modes for load in size.loads]
        rows = [bench.compare(mode, load, curves, acceptance) for mode, load in tqdm(loads, desc="loads")]
    cells = [{"requests": n, "block": b, "ms": ms} for (n, b), ms in curves.cells.items()]
    result = {
        "provenance": provenance(),
        "cells": cells,
        "prompts": [{"tokens": tokens, "ms": ms} for tokens, ms in curves.prompts.items()],
        "request_ms": curves.request_ms,
        "acceptance": {kind: list(curve) for kind, curve in acceptance.curves.items()},
        "rows": rows,
    }
    print(report(result))
    return result


def accepted(url: str, questions: Sequence[Question]) -> Acceptance:
    """Acceptance by position for each category of questions, from blocks of the full length."""
    with tqdm(total=len(questions), desc="acceptance", unit="question") as progress:
        answers = quality.ask_all(url, questions, linear(32), progress)
    found = {kind: one["by_position"] for kind, one in quality.by_category(answers).items() if one["by_position"]}
    return Acceptance({**found, ANY: quality.by_position(answers)})


class Bench:
    """A running server, measured and simulated."""

    def __init__(self, url: str, tokenizer: Any, questions: list[Question], size: Size, seed: int) -> None:
        self.url, self.questions, self.size, self.seed = url, questions, size, seed
        self.lengths = [len(tokenizer.encode(q.prompt, add_special_tokens=False)) for q in questions]
        self.words = tokenizer.decode(range(200, 200 + max(PROMPTS)))
        self.tokenizer = tokenizer

    def warm_up(self) -> None:
        """Every mode and every size once, so that nothing is compiled while it is timed."""
        for mode, block in MODES.items():
            self.closed(self.size.counts[-1], block, 32, mode)

    # What a plan's inputs are

    def curves(self, base: Roofline) -> Curves:
        """Step times in a closed loop, and prompts alone."""
        pairs = [(n, b) for n in self.size.counts for b in self.size.blocks]
        cells = {(n, b): self.step_ms(n, b) for n, b in tqdm(pairs, desc="steps", unit="cell")}
        alone = {tokens: self.first_token_ms(tokens) for tokens in PROMPTS}
        slope = (alone[PROMPTS[-1]] - alone[PROMPTS[0]]) / (PROMPTS[-1] - PROMPTS[0])
        request_ms = max(0.0, alone[PROMPTS[0]] - slope * PROMPTS[0] - cells[1, 1])
        prompts = {tokens: ms - request_ms for tokens, ms in alone.items()}
        return Curves(base, cells, context=TOKENS, prompts=prompts, request_ms=request_ms)

    def step_ms(self, count: int, block: int) -> float:
        """Milliseconds of a step with so many requests: of their tokens' chunks, which come one per step."""
        answers = self.closed(count, block, TOKENS, "ar" if block == 1 else "linear", self.size.repeats)
        return 1e3 * statistics.median(gap for answer in answers for gap in answer.itl)

    def first_token_ms(self, tokens: int) -> float:
        """Milliseconds of a prompt alone, of a request that gets one token."""
        text = self.tokenizer.decode(self.tokenizer.encode(self.words, add_special_tokens=False)[:tokens])
        question, body = Question("", text, 1), request_body(mode="ar")
        return 1e3 * statistics.median(self.send([question] * 3 * self.size.repeats, 1, body, "ttft"))

    def closed(self, count: int, block: int, tokens: int, mode: str, repeats: int = 1) -> list[Any]:
        """Requests of equal length, so many at a time."""
        chosen = [Question("", q.prompt, tokens) for q in self.questions]
        chosen = [chosen[index % len(chosen)] for index in range(count * repeats)]
        asked: dict[str, Any] = {"mode": mode} if block == 1 else {"mode": mode, "block_length": block}
        return self.send(chosen, count, {**request_body(**asked), "ignore_eos": True})

    def send(self, questions: Sequence[Question], count: int, body: dict[str, Any], name: str = "") -> list[Any]:
        """Answers of vLLM's client in a closed loop, or one of their fields."""
        answers = ask_all(self.url, questions, [(count, len(questions))], body)
        return [getattr(answer, name) for answer in answers] if name else answers

    # What it is compared with

    def compare(self, mode: str, load: float, curves: Curves, acceptance: Acceptance) -> dict[str, Any]:
        """One mode and load: measured, and simulated with the same arrivals and lengths."""
        rate = load * self.capacity(MODES[mode], curves, acceptance)
        requests, measured = self.open(mode, rate)
        span = requests[-1].arrival
        block = MODES[mode]
        replica = Replica(Limits(SEQS, BUDGET), POLICIES[mode], block, curves, acceptance, window=(0.0, float("inf")))
        outcome = simulate(requests, [replica], ROUTERS["random"](random.Random(0)), self.seed)
        figures = Figures.of(outcome, (0.0, span), 1, curves.request_ms / 1e3)
        last = max(job.last for job in outcome.jobs)
        simulated = {f"{name} p50": figures.p50[name] for name in LATENCIES}
        simulated |= {f"{name} p95": figures.p95[name] for name in LATENCIES}
        simulated["tokens/s"] = sum(request.output for request in requests) / last
        return {"mode": mode, "load": load, "rate": rate, "measured": measured, "simulated": simulated}

    def capacity(self, block: int, curves: Curves, acceptance: Acceptance) -> float:
        """Requests per second that the server could decode at its largest batch."""
        count, tokens = max(self.size.counts), statistics.mean(self.lengths)
        sizes = [size for size in self.size.blocks if size <= block] or [1]
        best = max(count * acceptance.tokens(size) / curves.cells[count, size] * 1e3 for size in sizes)
        expected = statistics.mean(len(self.tokenizer.encode(q.expected or "")) for q in self.questions)
        per_request = expected / best + curves.prompts[min(PROMPTS)] / 1e3 * tokens / max(PROMPTS)
        return 1 / per_request

    def open(self, mode: str, rate: float) -> tuple[list[Request], dict[str, float]]:
        """Poisson arrivals; the requests as they were sent and answered, and their figures."""
        rng, body = random.Random(self.seed + 1), request_body(mode=mode, block_length=MODES[mode])
        if MODES[mode] == 1:
            body = request_body(mode=mode)
        order = [rng.randrange(len(self.questions)) for _ in range(self.size.requests)]
        gaps = [rng.expovariate(rate) for _ in order]

        async def work() -> list[tuple[float, Any]]:
            async with client(self.url, {**GREEDY, **body}) as ask:
                begin, tasks = time.perf_counter(), []

                async def one(index: int) -> tuple[float, Any]:
                    sent = time.perf_counter() - begin
                    return sent, await ask(self.questions[index])

                due = 0.0
                for index, gap in zip(order, gaps, strict=True):
                    due += gap
                    await asyncio.sleep(max(0.0, begin + due - time.perf_counter()))
                    tasks.append(asyncio.ensure_future(one(index)))
                return await asyncio.gather(*tasks)

        answers = asyncio.run(work())
        first = answers[0][0]
        requests = [
            Request(sent - first, self.lengths[index], answer.output_tokens, self.questions[index].category)
            for index, (sent, answer) in zip(order, answers, strict=True)
        ]
        return requests, figures_of(answers, first)


def figures_of(answers: Sequence[tuple[float, Any]], first: float) -> dict[str, float]:
    """Measured percentiles and tokens per second."""
    values = {
        "ttft": [answer.ttft for _, answer in answers],
        "tpot": [(a.latency - a.ttft) / (a.output_tokens - 1) for _, a in answers if a.output_tokens > 1],
        "latency": [answer.latency for _, answer in answers],
    }
    found = {f"{name} p{share}": percentile(values[name], share) for share in (50, 95) for name in LATENCIES}
    end = max(sent + answer.latency for sent, answer in answers) - first
    return found | {"tokens/s": sum(answer.output_tokens for _, answer in answers) / end}


def report(result: dict[str, Any]) -> str:
    """Measured, simulated and error for every mode and load."""
    names = ["tokens/s", *(f"{name} p{share}" for name in ("ttft", "latency") for share in (50, 95))]
    rows, close, total = [], 0, 0
    for row in result["rows"]:
        cells = []
        for name in names:
            measured, simulated = row["measured"][name], row["simulated"][name]
            error = simulated / measured - 1
            close, total = close + (abs(error) <= CLOSE), total + 1
            digits = 0 if name == "tokens/s" else 3
            cells.append(f"{measured:.{digits}f} / {simulated:.{digits}f} ({error:+.0%})")
        rows.append([row["mode"], f"{row['load']:.0%}", *cells])
    head = f"{describe(result['provenance'])}\n\nMeasured / simulated (error); latencies in seconds."
    return f"{head}\n\n{table(['mode', 'load', *names], rows)}\n\n{close} of {total} within {CLOSE:.0%}."
