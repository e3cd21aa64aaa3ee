"""Runs every variant over the same rows, in turns, and stores answers and counts as they come.

    run = Run(store, url, "nano", variants, concurrency=8, scorer=Scorer())
    run.ask(rows)                   # only what the store lacks

A turn is a few rows that one variant answers alone, so that the server's counters and the clock tell what it took; then
the next variant answers the same rows. A turn is stored when it is complete: what is interrupted is asked again.
"""

import asyncio
import hashlib
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm_nld.evaluate import counts
from vllm_nld.evaluate.asking import Answer, Unreachable, ask, connect
from vllm_nld.evaluate.counts import Counts
from vllm_nld.evaluate.loop import alternate, closed_loop
from vllm_nld.evaluate.row import Row
from vllm_nld.evaluate.scoring import Scorer
from vllm_nld.evaluate.store import Store
from vllm_nld.evaluate.variant import Variant

LEAST = 8  # rows of a turn
ENOUGH = 1.5  # rows of a tag for each request that runs at a time, to have turns of their own
PER_CLIENT = 4  # rows of a turn for each request that runs at a time, so that few of them run alone at its end
PATIENCE = 2.0  # seconds until the server's counters have followed
ANSWER, TURN = "answer", "turn"


@dataclass(frozen=True, slots=True)
class Turn:
    """What it took one variant to answer some rows.

    counts: None if the server exports none, or if others used it meanwhile. tags: those of all its rows; empty if they
    differ.
    """

    rows: tuple[str, ...]
    seconds: float
    tokens: int
    tags: tuple[str, ...] = ()
    counts: Counts | None = None
    disturbed: bool = False

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> "Turn":
        found = None if data["counts"] is None else Counts(**data["counts"])
        return cls(**{**data, "rows": tuple(data["rows"]), "tags": tuple(data["tags"]), "counts": found})

    def dump(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in self.__slots__}
        return plain | {"counts": None if self.counts is None else counts.as_dict(self.counts)}


def split(rows: Sequence[Row], concurrency: int) -> list[list[Row]]:
    """The rows in turns, of one combination of tags each if there are enough of them to keep all clients busy."""
    size, groups = max(LEAST, PER_CLIENT * concurrency), {}  # type: ignore[var-annotated]  # filled below
    for row in rows:
        groups.setdefault(row.tags, []).append(row)
    alone = {tags: group for tags, group in groups.items() if len(group) >= ENOUGH * concurrency}
    mixed = [row for row in rows if row.tags not in alone]
    cut = [group[i : i + size] for group in [*alone.values(), mixed] for i in range(0, len(group), size)]
    return [turn for turn in cut if turn]


def name_of(rows: Sequence[Row]) -> str:
    """A turn's name: the same for the same rows."""
    return hashlib.sha256("\n".join(row.name for row in rows).encode()).hexdigest()[:12]


def seed_of(row: Row, seed: int) -> int:
    """A row's seed: the same in every variant, and another one for each row."""
    return zlib.crc32(f"{seed} {row.name}".encode()) % 2**31


class Run:
    """Asks what the store lacks. digests: store no texts. progress: called with the number of answers of each turn."""

    def __init__(
        self,
        store: Store,
        url: str,
        model: str,
        *,
        concurrency: int = 8,
        scorer: Scorer | None = None,
        seed: int = 0,
        defaults: Mapping[str, Any] | None = None,
        digests: bool = False,
        timeout: float = 600,
        progress: Callable[[int], Any] = lambda answers: None,
    ) -> None:
        self.store, self.url, self.model, self.concurrency = store, url, model, concurrency
        self.scorer, self.seed, self.defaults = scorer or Scorer(), seed, defaults or {}
        self.digests, self.timeout, self.progress = digests, timeout, progress

    def missing(self, rows: Sequence[Row], variants: Sequence[Variant]) -> int:
        """How many answers the store lacks."""
        return sum(len(turn) for turn in split(rows, self.concurrency) for v in variants if not self.known(turn, v))

    def known(self, turn: Sequence[Row], variant: Variant) -> bool:
        return self.store.get((TURN, variant.name, name_of(turn))) is not None

    def ask(self, rows: Sequence[Row], variants: Sequence[Variant]) -> None:
        """Every row in every variant. Raises Unreachable if a server doesn't answer."""
        with asyncio.Runner() as runner:
            clients: dict[str, Any] = {}  # that keep their connections, which a request's time would otherwise include
            try:
                for number, turn in enumerate(split(rows, self.concurrency)):
                    for variant in alternate(variants, number):
                        if not self.known(turn, variant):
                            self.take(turn, variant, runner, clients)
                            self.progress(len(turn))
            finally:
                for client in clients.values():  # connections can be closed only while their event loop runs
                    runner.run(client.close())

    def take(self, rows: Sequence[Row], variant: Variant, runner: asyncio.Runner, clients: dict[str, Any]) -> None:
        """One turn, and store it."""
        url = variant.url or self.url
        clients.setdefault(url, connect(url, self.timeout))
        before = scrape(url)
        begin = time.perf_counter()
        answers = runner.run(self.answers(rows, variant, clients))
        seconds = time.perf_counter() - begin
        found, disturbed = settle(url, before, answers)
        for row, answer in zip(rows, self.scorer.score_all(rows, answers), strict=True):
            kept = replace(answer, text=None, final=None) if self.digests else answer
            self.store.put((ANSWER, variant.name, row.name), kept.dump())
        tags = rows[0].tags if all(row.tags == rows[0].tags for row in rows) else ()
        tokens = sum(answer.tokens for answer in answers)
        turn = Turn(tuple(row.name for row in rows), round(seconds, 4), tokens, tags, found, disturbed)
        self.store.put((TURN, variant.name, name_of(rows)), turn.dump())

    async def answers(self, rows: Sequence[Row], variant: Variant, clients: Mapping[str, Any]) -> list[Answer]:
        client, model = clients[variant.url or self.url], variant.model or self.model

        async def one(index: int) -> Answer:
            return await ask(client, model, rows[index], variant, seed_of(rows[index], self.seed), self.defaults)

        return await closed_loop([(self.concurrency, len(rows))], one)


def scrape(url: str) -> Counts | None:
    """The server's counts so far; None if it exports none. Raises Unreachable if it doesn't answer."""
    try:
        text = counts.fetch(url)
    except OSError as error:
        if getattr(error, "code", None) is not None:  # an HTTP error: it answers, without metrics
            return None
        raise Unreachable(f"{url} doesn't answer: {getattr(error, 'reason', error)}") from None
    return counts.parse(text) if counts.modes(text) else None


def settle(url: str, before: Counts | None, answers: Iterable[Answer]) -> tuple[Counts | None, bool]:
    """What the server counted since `before`, with these answers, and whether others used it meanwhile."""
    if before is None:
        return None, False
    given = list(answers)
    least = sum(len(answer.firsts) for answer in given)
    most = least + sum(answer.error is not None for answer in given)  # a request that failed may have been counted
    end = time.monotonic() + PATIENCE
    while (now := scrape(url)) is not None and (found := now - before).requests < least and time.monotonic() < end:
        time.sleep(0.05)
    if now is None or not least <= found.requests <= most:
        return None, True
    return found, False
