"""Tokens/s, latencies, acceptance and accuracy of each mode, compared with the alternatives that a user has.

All servers are started first; then the contenders alternate with short runs, round by round, so that a slow minute of
the machine affects them equally, and the servers of all others are stopped meanwhile. Two contenders' runs of a round
with the same questions are a pair, and the report compares pairs. vLLM's own client measures speed (`bench.client`), at
fixed concurrencies and under a moving load (`bench.load`); a separate, untimed client collects answers and forwards
(`bench.quality`).
"""

import argparse
import shlex
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench import load, modes_report, peers
from bench.client import drive
from bench.contenders import COMMON, CONCURRENCIES, CONTENDERS, SERVERS, Contender
from bench.fleet import Fleet, fleet
from bench.prompts import Question, read, write
from bench.quality import Answer, ask_all, by_category, figures, forwards
from vllm_nld.evaluate.loop import alternate
from vllm_nld.evaluate.store import Store
from vllm_nld.nano import checkpoint_path
from vllm_nld.tools.provenance import provenance


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure. A run at concurrency C sends `requests(C)` questions, one of the moving load its stages'."""

    contenders: tuple[str, ...]
    concurrencies: tuple[int, ...] = CONCURRENCIES
    stages: tuple[load.Stage, ...] = tuple(load.ramp(load.PEAK))
    rounds: int = 30
    least: int = 8
    flags: tuple[str, ...] = ()

    def requests(self, concurrency: int) -> int:
        return max(self.least, 3 * concurrency)

    def loads(self, contender: Contender) -> list[str]:
        """The concurrencies at which a contender is timed, and the moving load."""
        fixed = [str(concurrency) for concurrency in self.concurrencies if concurrency in contender.at]
        return [*fixed, load.MOVING] if contender.moves and self.stages else fixed

    def order(self, turn: int) -> tuple[str, ...]:
        """The contenders in a round's order."""
        return tuple(alternate(self.contenders, turn))

    def runs(self) -> list[tuple[int, str, str]]:
        """Round, load and contender of every timed run."""
        loads = [*map(str, self.concurrencies), load.MOVING]
        return [
            (turn, at, name)
            for turn in range(self.rounds)
            for at in loads
            for name in self.order(turn)
            if at in self.loads(CONTENDERS[name])
        ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=checkpoint_path(), help="checkpoint folder (default: nano)")
    parser.add_argument(
        "--dataset-path", type=Path, help="JSONL of Spec-Bench, SPEED-Bench or prompts (default: nano's)"
    )
    parser.add_argument("--rounds", type=int, help="number of timed rounds (default: 30, quick: 5)")
    parser.add_argument("--concurrencies", type=int, nargs="+", choices=CONCURRENCIES, metavar="N", help="only these")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), metavar="NAME", help="only these contenders")
    parser.add_argument("--steady", action="store_true", help="without the moving load")
    parser.add_argument("--limit", type=int, help="only this many questions")
    parser.add_argument("--eager", action="store_true", help="no torch.compile, for all servers (quick: always)")
    parser.add_argument("--flags", default="", help="additional flags for every server, such as '--max-model-len 8192'")
    parser.add_argument("--fresh", action="store_true", help="discard the samples of an interrupted run")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for logs and samples")


def plan_of(options: argparse.Namespace) -> Plan:
    flags = (*(["--enforce-eager"] if options.eager or options.quick else []), *shlex.split(options.flags))
    if options.quick:
        chosen = options.only or [name for name, contender in CONTENDERS.items() if contender.quick]
        return Plan(tuple(chosen), (1, 4), tuple(load.ramp(2)), options.rounds or 5, 4, flags)
    chosen, at = options.only or list(CONTENDERS), tuple(options.concurrencies or CONCURRENCIES)
    stages = () if options.steady else Plan(()).stages
    return Plan(tuple(chosen), at, stages, options.rounds or 30, flags=flags)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the report and return every sample."""
    from transformers import AutoTokenizer

    from vllm_nld.model.configs import register_configs

    register_configs()  # the tokenizer's loader also reads config.json
    plan, source = plan_of(options), provenance()
    questions = read(AutoTokenizer.from_pretrained(options.model), options.dataset_path)
    questions = questions[: options.limit or (22 if options.quick else None)]
    result: dict[str, Any] = {
        "provenance": source,
        "model": "nano" if options.model == checkpoint_path() else options.model.name,
        "dataset": "nano's held-out prompts" if options.dataset_path is None else options.dataset_path.name,
        "questions": len(questions),
        "plan": asdict(plan) | {"common": COMMON},
        "servers": {name: asdict(SERVERS[name]) for name in servers_of(plan)},
    }
    store = Store(options.out / "modes.jsonl", result, options.fresh)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(plan, options.model, questions, write(questions, Path(folder) / "prompts.jsonl"), options.out)
        result |= bench.run(store)
    print(modes_report.report(result))
    return result


def servers_of(plan: Plan) -> list[str]:
    """The servers that the plan's contenders need, without duplicates."""
    names = (CONTENDERS[name].server for name in plan.contenders)
    return list(dict.fromkeys(name for name in names if name is not None))


class Bench:
    """A running benchmark."""

    def __init__(self, plan: Plan, model: Path, questions: list[Question], dataset: Path, folder: Path) -> None:
        self.plan, self.model, self.questions, self.dataset, self.folder = plan, model, questions, dataset, folder

    def run(self, store: Store) -> dict[str, Any]:
        """Returns `quality` by contender, and `speed`: samples by contender and load."""
        with fleet(SERVERS, servers_of(self.plan), self.model, self.folder, self.plan.flags) as servers:
            quality = {name: self.quality(name, servers, store) for name in self.plan.contenders}
            for at, name in tqdm(self.warm_ups(), desc="warm-up", unit="mode"):
                self.time(CONTENDERS[name], servers, at)
            speed: dict[str, dict[str, list[Any]]] = {name: {} for name in self.plan.contenders}
            for turn, at, name in tqdm(self.plan.runs(), desc="timing", unit="run"):
                sample = store.sample(
                    ("speed", turn, at, name),
                    lambda c=CONTENDERS[name], n=at: self.time(c, servers, n),  # type: ignore[misc]
                )
                speed[name].setdefault(at, []).append(sample)
        return {"quality": quality, "speed": speed}

    def warm_ups(self) -> list[tuple[str, str]]:
        """One run per timed contender, at its highest concurrency."""
        loads = {name: self.plan.loads(CONTENDERS[name]) for name in self.plan.contenders}
        return [([at for at in found if at != load.MOVING][-1], name) for name, found in loads.items() if found]

    def time(self, contender: Contender, servers: Fleet, at: str) -> dict[str, Any]:
        """One timed run."""
        if contender.server is None:
            servers.pause()
            return peers.time_reference(self.model, self.questions[: self.plan.requests(int(at))])
        url = servers.turn(contender.server, contender.body).url
        if at == load.MOVING:
            return load.drive(url, self.questions, self.plan.stages, contender.body)
        log, count = self.folder / "client.log", self.plan.requests(int(at))
        return drive(url, self.model, self.dataset, count, int(at), contender.body, log)

    def quality(self, name: str, servers: Fleet, store: Store) -> dict[str, Any] | None:
        """Figures over all questions, each answered once; None for a contender that is only timed."""
        contender = CONTENDERS[name]
        if contender.server is None:
            return None

        server = contender.server

        def measure() -> dict[str, Any]:
            url = servers.turn(server, contender.body).url
            before = forwards(url) if contender.forwards == "server" else None
            with tqdm(total=len(self.questions), desc=name, unit="question") as progress:
                answers = [asdict(a) for a in ask_all(url, self.questions, contender, progress)]
            return {"answers": answers, "nfe": None if before is None else forwards(url) - before}

        measured = store.sample(("quality", name), measure)
        answers = [Answer(**row | {"accepted": tuple(row["accepted"])}) for row in measured["answers"]]
        found = figures(answers, measured["nfe"])
        return found | {"by_category": by_category(answers), "digests": [a.digest for a in answers]}
