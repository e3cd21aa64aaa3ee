"""A replica's API server: it reads requests, and writes what a step yields to as many streams. A queue of its own.

    front = FrontEnd(Costs(request=2e-3, step=1e-4, piece=1e-4), processes=2)
    ready = front.admit(now, job)                   # when the engine gets a request that arrives now
    front.send(now, jobs)                           # sets when the clients of these requests see a step's tokens

Each process does one thing at a time, in the order in which it comes. The engine doesn't wait for it, so streams fall
behind if it can't keep up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol


class Streamed(Protocol):
    """What the API server knows of a request. seen_first, seen_last: when its client saw a token."""

    process: int
    seen_first: float
    seen_last: float


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of an API server's process.

    request: reading, checking, tokenizing, and the end of its stream. step: taking over what a step of the engine
    yields. piece: detokenizing and writing one request's part of it. Raises ValueError for less than nothing.
    """

    request: float = 0.0
    step: float = 0.0
    piece: float = 0.0

    def __post_init__(self) -> None:
        for one in fields(self):
            if getattr(self, one.name) < 0:
                raise ValueError(f"the API server's seconds per {one.name} can't be negative")


@dataclass(slots=True)
class FrontEnd:
    """The processes of one API server. Requests go to them in turn."""

    costs: Costs = Costs()
    processes: int = 1
    _free: list[float] = field(init=False)  # when each process has done what it was given
    _count: int = 0

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"an API server has at least 1 process, not {self.processes}")
        self._free = [0.0] * self.processes

    def admit(self, now: float, job: Streamed) -> float:
        """Read a request; when the engine gets it."""
        job.process = self._count % self.processes
        self._count += 1
        return self._work(job.process, now, self.costs.request)

    def send(self, now: float, jobs: Sequence[Streamed]) -> None:
        """Write one piece to the stream of each of these requests."""
        for process in sorted({job.process for job in jobs}):
            self._work(process, now, self.costs.step)
        for job in jobs:
            job.seen_last = self._work(job.process, now, self.costs.piece)
            if job.seen_first < 0:
                job.seen_first = job.seen_last

    def _work(self, process: int, now: float, seconds: float) -> float:
        """Queue some work; when it is done."""
        self._free[process] = max(now, self._free[process]) + seconds
        return self._free[process]
