"""Compares `vllm-nld plan`'s simulation with a real server: P50, P95 and tokens/s under open-loop loads.

    python -m bench plan

One server of nano answers everything. First it is measured as a plan's inputs are, see `bench.calibration`: step times
at fixed concurrencies and block lengths, prompts alone, what the API server takes, and acceptance by position on half
of the questions. Then the other half arrives as a Poisson process at several loads, in each mode, and the simulation is
given the same arrivals and lengths. Nothing is fitted to what it is compared with.
"""

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench import quality
from bench.calibration import PROMPTS, Calibration, Found, Size, body_of
from bench.contenders import COUNTED, linear
from bench.load import GREEDY, client
from bench.prompts import Question, read
from vllm_nld.evaluate.spread import table
from vllm_nld.nano import checkpoint_path
from vllm_nld.plan.acceptance import ANY, Acceptance
from vllm_nld.plan.figures import LATENCIES, Figures, percentile
from vllm_nld.plan.fleet import ROUTERS, simulate
from vllm_nld.plan.front_end import FrontEnd
from vllm_nld.plan.policies import POLICIES
from vllm_nld.plan.replica import Limits, Replica
from vllm_nld.plan.steps import Roofline
from vllm_nld.plan.traffic import Request
from vllm_nld.roofline.devices import Device, cpu_rates
from vllm_nld.roofline.shapes import nano
from vllm_nld.tools.provenance import describe, provenance
from vllm_nld.tools.server import Server

MODES = {"ar": 1, "linear": 16, "auto": 32}  # and the block length
LOADS = (0.3, 0.6, 3.0)  # of what the server can do; only beyond 1 do tokens/s say more than the arrivals
SEQS, BUDGET = 32, 4096
FLAGS = ["--max-num-seqs", str(SEQS), "--max-num-batched-tokens", str(BUDGET), "--max-model-len", "1024"]
FLAGS += ["--no-enable-prefix-caching", "--served-model-name", "bench", *COUNTED]
CLOSE = 0.2  # relative error that counts as agreement
REQUESTS, FEW = 200, 30  # of each load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--loads", nargs="+", type=float, default=list(LOADS), help="of what the server can do")
    parser.add_argument("--requests", type=int, help=f"per mode and load (default: {REQUESTS}, quick: {FEW})")
    parser.add_argument("--eager", action="store_true", help="no torch.compile, so that the server starts sooner")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-plan"), help="folder for the server's log")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, simulate, compare."""
    from transformers import AutoTokenizer

    from vllm_nld.model.configs import register_configs

    register_configs()  # the tokenizer's loader also reads config.json
    options.out.mkdir(parents=True, exist_ok=True)
    size = Size((1, 8), (1, 32), 1) if options.quick else Size()
    requests = options.requests or (FEW if options.quick else REQUESTS)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    questions = read(tokenizer, None)
    base = Roofline(nano(), Device("this CPU", *cpu_rates(), launch=0.0, host=0.0))
    flags = [*FLAGS, "--enforce-eager"] if options.eager else FLAGS
    with Server(checkpoint_path(), flags, log=options.out / "server.log") as server:
        calibration = Calibration(server, questions, cutter(tokenizer), size)
        calibration.warm_up(MODES)
        found = calibration.measure(base)
        accepted = acceptance_of(server.url, questions[::2])
        bench = Bench(server.url, tokenizer, questions[1::2], requests, options.seed)
        loads = [(mode, load) for mode in options.modes for load in options.loads]
        rows = [bench.compare(mode, load, found, accepted) for mode, load in tqdm(loads, desc="loads")]
    result = {
        "provenance": provenance(),
        "flags": flags,
        "requests": requests,
        **found.plain(),
        "acceptance": {kind: list(curve) for kind, curve in accepted.curves.items()},
        "rows": rows,
    }
    print(report(result))
    return result


def cutter(tokenizer: Any) -> Any:
    """A function that gives a text of so many tokens."""
    words = tokenizer.encode(tokenizer.decode(range(200, 200 + 2 * max(PROMPTS))), add_special_tokens=False)
    return lambda tokens: tokenizer.decode(words[:tokens])


def acceptance_of(url: str, questions: Sequence[Question]) -> Acceptance:
    """Acceptance by position for each category of questions, from blocks of the full length."""
    with tqdm(total=len(questions), desc="acceptance", unit="question") as progress:
        answers = quality.ask_all(url, questions, linear(32), progress)
    found = {kind: one["by_position"] for kind, one in quality.by_category(answers).items() if one["by_position"]}
    return Acceptance({**found, ANY: quality.by_position(answers)})


class Bench:
    """A running server under open-loop loads, and its simulation."""

    def __init__(self, url: str, tokenizer: Any, questions: list[Question], requests: int, seed: int) -> None:
        self.url, self.questions, self.requests, self.seed = url, questions, requests, seed
        self.lengths = [len(tokenizer.encode(q.prompt, add_special_tokens=False)) for q in questions]
        self.answer = statistics.mean(len(tokenizer.encode(q.expected or "")) for q in questions)

    def compare(self, mode: str, load: float, found: Found, accepted: Acceptance) -> dict[str, Any]:
        """One mode and load: measured, and simulated with the same arrivals and lengths."""
        rate = load * self.capacity(MODES[mode], found, accepted)
        requests, measured = self.open(mode, rate)
        return {
            "mode": mode,
            "load": load,
            "rate": rate,
            "requests": [list(request) for request in requests],
            "measured": measured,
            "simulated": simulated(mode, requests, found, accepted, self.seed),
        }

    def capacity(self, block: int, found: Found, accepted: Acceptance) -> float:
        """Requests per second that the engine could decode at its largest batch, or the API server could stream."""
        cells, front, prompts = found.curves.cells, found.curves.front, found.curves.prompts
        count = max(n for n, _ in cells)
        sizes = [b for n, b in cells if n == count and b <= block]
        rounds = {b: self.answer / accepted.tokens(b) for b in sizes}
        engine = min(rounds[b] * cells[count, b] / 1e3 / count for b in sizes)
        engine += prompts[min(PROMPTS)] / 1e3 * statistics.mean(self.lengths) / max(PROMPTS)
        streams = front.request + min(rounds.values()) * (front.piece + front.step / count)
        return 1 / max(engine, streams)

    def open(self, mode: str, rate: float) -> tuple[list[Request], dict[str, float]]:
        """Poisson arrivals; the requests as they were sent and answered, and their figures."""
        rng, body = random.Random(self.seed + 1), body_of(mode, MODES[mode])
        order = [rng.randrange(len(self.questions)) for _ in range(self.requests)]
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


def simulated(
    mode: str, requests: Sequence[Request], found: Found, accepted: Acceptance, seed: int
) -> dict[str, float]:
    """The figures that the plan predicts for these requests."""
    curves, delay = found.curves, found.curves.request_ms / 1e3
    front = FrontEnd(curves.front)
    replica = Replica(Limits(SEQS, BUDGET), POLICIES[mode], MODES[mode], curves, accepted, front=front)
    outcome = simulate(requests, [replica], ROUTERS["random"](random.Random(0)), seed)
    figures = Figures.of(outcome, (0.0, requests[-1].arrival), 1, delay)
    shown = {f"{name} p50": figures.p50[name] for name in LATENCIES}
    shown |= {f"{name} p95": figures.p95[name] for name in LATENCIES}
    last = max(job.seen_last for job in outcome.jobs) + delay
    return shown | {"tokens/s": sum(request.output for request in requests) / last}


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
            measured, found = row["measured"][name], row["simulated"][name]
            error = found / measured - 1
            close, total = close + (abs(error) <= CLOSE), total + 1
            digits = 0 if name == "tokens/s" else 3
            cells.append(f"{measured:.{digits}f} / {found:.{digits}f} ({error:+.0%})")
        rows.append([row["mode"], f"{row['load']:.0%}", *cells])
    front = ", ".join(f"{ms:.2f} ms per {name}" for name, ms in result["front_end_ms"].items())
    return "\n\n".join(
        [
            describe(result["provenance"]),
            f"nano, {result['requests']} requests for each mode and load. Measured first: the API server takes {front} "
            f"({result['stretch']:.2f} times its CPU time, as the engine and the client run on the same cores); a "
            f"request takes {result['request_ms']:.1f} ms beyond that and its steps.",
            "Measured / simulated (error); latencies in seconds.",
            table(["mode", "load", *names], rows),
            f"{close} of {total} within {CLOSE:.0%}.",
        ]
    )
