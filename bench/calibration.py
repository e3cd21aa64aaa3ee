"""Measures a running server as a plan's inputs: step times, prompts alone, and what its API server takes.

    found = Calibration(server, questions, cut, Size()).measure(base)
    found.curves.cells, found.curves.front

Step times are the engine's own: the time between two steps' tokens, from the timestamps that it puts on them, while a
fixed number of requests decode. They don't depend on how fast the API server and the client follow. What the API server
takes is its CPU time, which doesn't depend on who else runs; what a second of it takes on a clock while the engine and
the client run on the same cores is measured where streams fall behind the engine.
"""

import asyncio
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil
from tqdm import tqdm

from bench.contenders import request_body
from bench.load import GREEDY, ask_all, client
from bench.prompts import Question
from vllm_nld.evaluate.counts import fetch
from vllm_nld.plan.acceptance import samples
from vllm_nld.plan.front_end import Costs
from vllm_nld.plan.steps import Curves, Roofline
from vllm_nld.tools.server import Server

PROMPTS = (60, 240, 480)  # tokens
LONE = 40  # one-token requests, one after another
STEPS, TOKENS = 192, 400  # output tokens of the requests that measure steps: in AR, and if they draft
POLL = 0.02  # seconds
BEHIND = 1.1  # streams fall behind if their pieces come so many times more slowly than the engine's steps

ITERATIONS = "vllm:iteration_tokens_total_count"
RUNNING = "vllm:num_requests_running"
GAP, PREFILL = "vllm:inter_token_latency_seconds", "vllm:request_prefill_time_seconds"
CPU = "cpu"  # seconds of the API server's process


@dataclass(frozen=True, slots=True)
class Size:
    """How much to measure."""

    counts: tuple[int, ...] = (1, 4, 12, 32)  # concurrent requests
    blocks: tuple[int, ...] = (1, 8, 16, 32)
    repeats: int = 3


@dataclass(frozen=True, slots=True)
class Cell:
    """A fixed number of requests with one block length. Seconds.

    step: between two steps of the engine. seen: between two pieces of a stream, at the client. work: of the API
    server's CPU per step.
    """

    requests: int
    block: int
    step: float
    seen: float
    work: float


@dataclass(frozen=True, slots=True)
class Found:
    """What a plan needs to know. stretch: see `costs_of`."""

    curves: Curves
    stretch: float
    cells: tuple[Cell, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON; with `cells` and `prompts` as `vllm-nld plan --curves` reads them."""
        return {
            "cells": [{"requests": n, "block": b, "ms": ms} for (n, b), ms in self.curves.cells.items()],
            "context": self.curves.context,
            "prompts": [{"tokens": tokens, "ms": ms} for tokens, ms in self.curves.prompts.items()],
            "front_end_ms": {name: 1e3 * value for name, value in asdict(self.curves.front).items()},
            "request_ms": self.curves.request_ms,
            "stretch": self.stretch,
            "measured": [asdict(cell) for cell in self.cells],
        }


class Calibration:
    """A server that nobody else uses. cut: a text of so many tokens."""

    def __init__(self, server: Server, questions: Sequence[Question], cut: Callable[[int], str], size: Size) -> None:
        assert server.process is not None
        self.url, self.questions, self.cut, self.size = server.url, questions, cut, size
        self._process = psutil.Process(server.process.pid)

    def warm_up(self, modes: Mapping[str, int]) -> None:
        """Every mode at the largest size once, so that nothing is compiled while it is timed."""
        for mode, block in modes.items():
            self._ask(self.size.counts[-1], self._asked(self.size.counts[-1], 32), body_of(mode, block))

    def measure(self, base: Roofline) -> Found:
        pairs = [(n, b) for n in self.size.counts for b in self.size.blocks]
        cells = tuple(self._cell(n, b) for n, b in tqdm(pairs, desc="steps", unit="cell"))
        lone, first = self._lone()
        prompts = {tokens: self._prefill(tokens)[0] for tokens in PROMPTS}
        front, stretch = costs_of(cells, lone)
        seen, engine = first
        delay = max(0.0, seen - engine - front.request - front.step - front.piece)
        context = round(statistics.mean(self._tokens(b) for b in self.size.blocks) / 2)
        curves = Curves(
            base,
            {(cell.requests, cell.block): 1e3 * cell.step for cell in cells},
            context,
            {tokens: 1e3 * seconds for tokens, seconds in prompts.items()},
            request_ms=1e3 * delay,
            front=front,
        )
        return Found(curves, stretch, cells)

    # One figure each

    def _cell(self, count: int, block: int) -> Cell:
        """Medians of a few repeats."""
        found = [asyncio.run(self._steady(count, block)) for _ in range(self.size.repeats)]
        step, seen, work = (statistics.median(part) for part in zip(*found, strict=True))
        return Cell(count, block, step, seen, work)

    async def _steady(self, count: int, block: int) -> tuple[float, float, float]:
        """Seconds per step, per piece at the client, and of the API server's CPU per step, while all requests run."""
        body = {**GREEDY, **body_of("ar" if block == 1 else "linear", block), "ignore_eos": True}
        async with client(self.url, body) as ask:
            tasks = [asyncio.ensure_future(ask(question)) for question in self._asked(count, self._tokens(block))]
            before = await asyncio.to_thread(self._look)
            while before[RUNNING] < count and not any(task.done() for task in tasks):
                await asyncio.sleep(POLL)
                before = await asyncio.to_thread(self._look)
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            cpu = self._cpu()
            spent = difference(await asyncio.to_thread(self._look), before)
            answers = await asyncio.gather(*tasks)
        step = spent[f"{GAP}_sum"] / spent[f"{GAP}_count"]
        pieces = statistics.mean(len(answer.itl) for answer in answers)
        seen = statistics.mean((answer.latency - answer.ttft) for answer in answers) / pieces
        if block == 1:  # pieces that are late are written together
            seen = statistics.mean((answer.latency - answer.ttft) / (answer.output_tokens - 1) for answer in answers)
        return step, seen, (cpu - before[CPU]) / spent[ITERATIONS]

    def _lone(self) -> tuple[float, tuple[float, float]]:
        """The API server's CPU seconds per one-token request; and its seconds to the first token, at both ends."""
        before = self._look()
        seen, engine = self._first(PROMPTS[0], LONE)
        return (self._cpu() - before[CPU]) / LONE, (seen, engine)

    def _prefill(self, tokens: int) -> tuple[float, float]:
        """The engine's seconds for a prompt alone, and the client's."""
        found = [self._first(tokens, 3) for _ in range(self.size.repeats)]
        seen, engine = (statistics.median(part) for part in zip(*found, strict=True))
        return engine, seen

    def _first(self, tokens: int, count: int) -> tuple[float, float]:
        """Seconds to the first token of one-token requests, one after another: the client's, and the engine's."""
        before = self._look()
        answers = self._ask(1, [Question("", self.cut(tokens), 1)] * count, body_of("ar", 1))
        spent = difference(self._look(), before)
        engine = spent[f"{PREFILL}_sum"] / spent[f"{PREFILL}_count"]
        return statistics.median(answer.ttft for answer in answers), engine

    # The server

    def _tokens(self, block: int) -> int:
        return STEPS if block == 1 else TOKENS

    def _asked(self, count: int, tokens: int) -> list[Question]:
        chosen = [self.questions[index % len(self.questions)] for index in range(count)]
        return [Question("", question.prompt, tokens) for question in chosen]

    def _ask(self, clients: int, questions: Sequence[Question], body: Mapping[str, Any]) -> list[Any]:
        return ask_all(self.url, questions, [(clients, len(questions))], {**body, "ignore_eos": True})

    def _look(self) -> dict[str, float]:
        """The server's counters and its CPU time."""
        found: dict[str, float] = {}
        for name, _, value in samples(fetch(self.url)):
            found[name] = found.get(name, 0.0) + value
        return found | {CPU: self._cpu()}

    def _cpu(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


def body_of(mode: str, block: int) -> dict[str, Any]:
    """A request's extra fields. block: 1 in AR."""
    return request_body(mode=mode) if block == 1 else request_body(mode=mode, block_length=block)


def difference(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


def costs_of(cells: Sequence[Cell], lone: float) -> tuple[Costs, float]:
    """The API server's seconds, and how many of them a second of its CPU takes beside the engine and the client.

    lone: CPU seconds of a one-token request. A step's work is a fixed part and one for each stream; both follow from
    the cells by least squares. The stretch is that of the largest AR cell if streams fall behind the engine there, so
    that the API server alone sets their pace; otherwise 1, since it hardly matters then.
    """
    import numpy as np
    from scipy.optimize import nnls

    rows = [[1.0, float(cell.requests)] for cell in cells]
    weights = [1.0 / cell.requests for cell in cells]  # per piece, so that every cell counts alike
    (step, piece), _ = nnls(
        np.array(rows) * np.array(weights)[:, None], np.array([c.work for c in cells]) * np.array(weights)
    )
    largest = max((cell for cell in cells if cell.block == 1), key=lambda cell: cell.requests)
    behind = largest.seen > BEHIND * largest.step and largest.work > largest.step / 2
    stretch = max(1.0, largest.seen / (step + piece * largest.requests)) if behind else 1.0
    request = max(0.0, lone - step - piece)
    return Costs(*(float(stretch * seconds) for seconds in (request, step, piece))), float(stretch)
