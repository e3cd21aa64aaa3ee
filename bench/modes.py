"""Tokens/s, latencies, acceptance and accuracy of each mode, compared with the alternatives that a user has.

All servers are started first; then the contenders alternate, round by round, so that a slow minute of the machine
affects them equally. vLLM's own client measures speed (`bench.client`); a separate, untimed client collects answers and
forwards (`bench.quality`).
"""

import argparse
import shlex
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench import modes_report, peers
from bench.client import drive
from bench.contenders import COMMON, CONTENDERS, SERVERS, Contender
from bench.fleet import fleet
from bench.prompts import Question, read, write
from bench.provenance import provenance
from bench.quality import Answer, ask_all, by_category, figures, forwards
from bench.store import Store
from vllm_nld.nano import checkpoint_path
from vllm_nld.tools.server import Server


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure. A run at concurrency C sends `requests(C)` questions."""

    contenders: tuple[str, ...]
    concurrencies: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    rounds: int = 3
    least: int = 12
    flags: tuple[str, ...] = ()

    def requests(self, concurrency: int) -> int:
        return max(self.least, 2 * concurrency)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=checkpoint_path(), help="checkpoint folder (default: nano)")
    parser.add_argument(
        "--dataset-path", type=Path, help="JSONL of Spec-Bench, SPEED-Bench or prompts (default: nano's)"
    )
    parser.add_argument("--rounds", type=int, help="number of timed rounds (default: 3, quick: 5)")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), metavar="NAME", help="only these contenders")
    parser.add_argument("--limit", type=int, help="only this many questions")
    parser.add_argument("--eager", action="store_true", help="no torch.compile, for all servers (quick: always)")
    parser.add_argument("--flags", default="", help="additional flags for every server, such as '--max-model-len 8192'")
    parser.add_argument("--fresh", action="store_true", help="discard the samples of an interrupted run")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for logs and samples")


def plan_of(options: argparse.Namespace) -> Plan:
    flags = (*(["--enforce-eager"] if options.eager or options.quick else []), *shlex.split(options.flags))
    if options.quick:
        chosen = options.only or [name for name, contender in CONTENDERS.items() if contender.quick]
        return Plan(tuple(chosen), (1, 4), options.rounds or 5, 4, flags)
    return Plan(tuple(options.only or CONTENDERS), rounds=options.rounds or 3, flags=flags)


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
        """Returns `quality` by contender, and `speed`: samples by contender and concurrency."""
        with fleet(SERVERS, servers_of(self.plan), self.model, self.folder, self.plan.flags) as servers:
            quality = {name: self.quality(name, servers, store) for name in self.plan.contenders}
            for _, concurrency, name in tqdm(self.warm_ups(), desc="warm-up", unit="mode"):
                self.time(CONTENDERS[name], servers, concurrency)
            speed: dict[str, dict[str, list[Any]]] = {name: {} for name in self.plan.contenders}
            for turn, concurrency, name in tqdm(self.turns(), desc="timing", unit="run"):
                key = ("speed", turn, concurrency, name)
                sample = store.sample(
                    key,
                    lambda c=CONTENDERS[name], n=concurrency: self.time(c, servers, n),  # type: ignore[misc]
                )
                speed[name].setdefault(str(concurrency), []).append(sample)
        return {"quality": quality, "speed": speed}

    def warm_ups(self) -> list[tuple[int, int, str]]:
        """One run per timed contender, at its highest concurrency."""
        last = {name: (turn, concurrency, name) for turn, concurrency, name in self.turns()}
        return list(last.values())

    def turns(self) -> list[tuple[int, int, str]]:
        """Round, concurrency and contender of every run; the order rotates from round to round."""
        names = self.plan.contenders
        turns = []
        for turn in range(self.plan.rounds):
            order = names[turn % len(names) :] + names[: turn % len(names)]
            for concurrency in self.plan.concurrencies:
                at = [name for name in order if concurrency <= CONTENDERS[name].most]
                turns += [(turn, concurrency, name) for name in at]
        return turns

    def time(self, contender: Contender, servers: dict[str, Server], concurrency: int) -> dict[str, Any]:
        """One timed run."""
        count = self.plan.requests(concurrency)
        if contender.server is None:
            return peers.time_reference(self.model, self.questions[: min(count, len(self.questions))])
        url, log = servers[contender.server].url, self.folder / "client.log"
        return drive(url, self.model, self.dataset, count, concurrency, contender.body, log)

    def quality(self, name: str, servers: dict[str, Server], store: Store) -> dict[str, Any] | None:
        """Figures over all questions, each answered once; None for a contender that is only timed."""
        contender = CONTENDERS[name]
        if contender.server is None:
            return None

        url = servers[contender.server].url

        def measure() -> dict[str, Any]:
            before = forwards(url) if contender.forwards == "server" else None
            with tqdm(total=len(self.questions), desc=name, unit="question") as progress:
                answers = [asdict(a) for a in ask_all(url, self.questions, contender, progress)]
            return {"answers": answers, "nfe": None if before is None else forwards(url) - before}

        measured = store.sample(("quality", name), measure)
        answers = [Answer(**row | {"accepted": tuple(row["accepted"])}) for row in measured["answers"]]
        found = figures(answers, measured["nfe"])
        return found | {"by_category": by_category(answers), "digests": [a.digest for a in answers]}
