"""Runs subjects in processes, within time limits, and hands on each finding as it arrives."""

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.engines import lead
from bench.gpu_check.process import work
from bench.gpu_check.record import FAIL, SKIPPED, Comparison, Finding, Setting, Subject, judge

LEAST = 5.0  # seconds; with less time left, nothing is started
PATIENCE = 20  # times as long as the limits, which are for GPUs, on a CPU
SHARE = 0.6  # of the budget, after which what measures no time makes room for what does
Target = Callable[[Setting, str, Path, Connection], None]


@dataclass(slots=True)
class Conductor:
    """One run.

    say: called with each line's name and finding, in any thread.
    ends: when the budget is used up, on time.monotonic()'s clock.
    """

    setting: Setting
    logs: Path
    say: Callable[[str, Finding], None]
    ends: float
    jobs: int = 1
    target: Target = work
    found: dict[str, Finding] = field(default_factory=dict)
    running: set[Any] = field(default_factory=set)  # processes
    over: bool = False
    room: float = field(default=0.0, init=False)  # when subjects that measure no time have to end

    def run(self, items: Sequence[Subject | Comparison]) -> None:
        """All subjects: those that measure no time side by side first, the others one by one. Comparisons as soon as
        both sides are there, at the latest after everything else.
        """
        subjects = [item for item in items if isinstance(item, Subject)]
        comparisons = [item for item in items if isinstance(item, Comparison)]
        begun = time.monotonic()
        timed = any(subject.alone for subject in subjects)
        self.room = begun + SHARE * (self.ends - begun) if timed else self.ends
        pool = ThreadPoolExecutor(self.jobs)
        try:
            list(pool.map(self._conduct, (subject for subject in subjects if not subject.alone)))
            self._compare(comparisons, final=False)
            for subject in subjects:
                if subject.alone:
                    self._conduct(subject)
                    self._compare(comparisons, final=False)
            self._compare(comparisons, final=True)
        finally:  # on Ctrl-C and SIGTERM processes still run
            self.over = True
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(self.running):
                end(process)

    def _note(self, line: str, finding: Finding) -> None:
        if not self.over:
            self.found[line] = finding
            self.say(line, finding)

    def _compare(self, comparisons: Sequence[Comparison], final: bool) -> None:
        """Run what has all that it needs; finally, skip the rest."""
        for item in comparisons:
            if item.name in self.found:
                continue
            missing = [name for name in item.needs if name not in self.found or self.found[name].data is None]
            if not missing:
                self._note(item.name, judge(item.run, *(self.found[name].data for name in item.needs)))
            elif final:
                self._note(item.name, Finding(SKIPPED, f"nothing to compare: no result of {', '.join(missing)}"))

    def _conduct(self, subject: Subject) -> None:
        """One subject, in a process of its own."""
        waiting, ends = subject.lines(), self.ends if subject.alone else self.room
        if ends - time.monotonic() < LEAST:
            self._skip(waiting, "the budget of time is used up (--minutes)")
            return
        patience = 1 if self.setting.gpu else PATIENCE
        limits = [patience * limit for limit in (subject.limit, *(check.limit for check in subject.checks))]
        log = self.logs / f"{re.sub('[^A-Za-z0-9_]+', '-', subject.name)}.log"
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        process = context.Process(target=lead, args=(self.target, self.setting, subject.name, log, theirs), daemon=True)
        process.start()
        self.running.add(process)
        theirs.close()  # only the child holds its end, so that recv() fails if the child dies
        try:
            problem = self._listen(pipe, waiting, dict(zip(waiting, limits, strict=True)), ends)
            if problem:
                more = last_error(log) if problem.verdict == FAIL else ""
                self._note(waiting[0], Finding(problem.verdict, f"{problem.text}{more}"))
                self._skip(waiting[1:], f"{subject.name} has ended")
            elif waiting:
                self._skip(waiting, f"{subject.name} has not started")
        finally:
            end(process)
            self.running.discard(process)

    def _listen(self, pipe: Connection, waiting: list[str], limits: dict[str, float], latest: float) -> Finding | None:
        """Take findings from a process until it has no more, or until `latest`. Returns why waiting[0] has none."""
        ends = time.monotonic() + limits[waiting[0]]
        while waiting:
            if not pipe.poll(max(0.0, min(ends, latest) - time.monotonic())):
                if latest < ends:
                    return Finding(SKIPPED, "the budget of time is used up (stopped)")
                return Finding(FAIL, f"no end after {limits[waiting[0]]} s (stopped)")
            try:
                line, *finding = pipe.recv()
            except (EOFError, ConnectionError):
                return Finding(FAIL, "its process died")
            if not finding:
                ends = time.monotonic() + limits[line]
                continue
            waiting.remove(line)
            self._note(line, finding[0])
            if line.endswith(": start") and finding[0].verdict == FAIL:
                return None
        return None

    def _skip(self, lines: Sequence[str], why: str) -> None:
        for line in lines:
            self._note(line, Finding(SKIPPED, why))


def end(process: multiprocessing.process.BaseProcess) -> None:
    """Kill a process and its children, if it still runs."""
    process.join(timeout=2)
    if process.is_alive():
        try:
            os.killpg(process.pid, signal.SIGKILL)  # type: ignore[arg-type]  # it was started
        except ProcessLookupError:  # it does not lead its group yet
            process.kill()
        process.join()


def last_error(log: Path) -> str:
    """What a process said last about an error, in brackets, and where to read more."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line for line in lines if "Error" in line and "WARNING" not in line]
    last = (errors or lines or ["no output"])[-1][:300]
    return f"; {last} (all of it: {log.name})"
