"""What the tool is made of: a finding is one line, a check makes one, a subject is a process that checks share.

Check("linear = ar", "speculation is lossless", lossless)        # lossless(opened) -> Finding
Subject("nano float32", "nano", open_engine, (Check(...), ...))  # one process; open_engine() yields `opened`
Comparison("eager = graphs", "nano", "...", ("nano eager: AR", "nano graphs: AR"), same)   # of other findings
"""

import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

OK = "OK"  # as it should be
DIFF = "DIFF"  # not as expected, but not proof of a fault: read it
FAIL = "FAIL"
FIGURE = "figure"  # measured; nothing to compare it with
SKIPPED = "skipped"
VERDICTS = (OK, DIFF, FAIL, FIGURE, SKIPPED)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: a verdict, one line of text, and plain data for comparisons and for the JSON."""

    verdict: str
    text: str
    data: Any = None

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"a verdict is one of {VERDICTS}, not {self.verdict!r}")
        object.__setattr__(self, "text", " ".join(self.text.split()))  # one line, whatever an error message holds


@dataclass(frozen=True, slots=True)
class Check:
    """One line. `run` gets what its subject has opened; an exception is a FAIL.

    why: what would be wrong if it failed.
    limit: seconds.
    gpu_only: why it cannot run on a CPU; empty if it can.
    """

    name: str
    why: str
    run: Callable[[Any], Finding]
    limit: float = 90
    gpu_only: str = ""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how much: the subjects and checks depend on nothing else.

    quick: fewer prompts, tokens and cells.
    options: engine options for every engine, on top of a subject's own.
    """

    gpu: bool
    quick: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        return "cuda" if self.gpu else "cpu"


@dataclass(frozen=True, slots=True)
class Subject:
    """What several checks look at, in a process of its own: an engine that dies costs only its own lines.

    open: yields what the checks get.
    limit: seconds to open it.
    alone: nothing else may run meanwhile, because times are measured.
    """

    name: str
    group: str
    open: Callable[[Setting], AbstractContextManager[Any]]
    checks: tuple[Check, ...]
    limit: float = 240
    alone: bool = False

    def lines(self) -> list[str]:
        """The names of its findings, in order. The first one is about opening it."""
        return [f"{self.name}: {name}" for name in ("start", *(check.name for check in self.checks))]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line about the data of other findings. `run` gets them in the order of `needs`."""

    name: str
    group: str
    why: str
    needs: tuple[str, ...]
    run: Callable[..., Finding]

    def lines(self) -> list[str]:
        return [self.name]


def judge(run: Callable[..., Finding], *given: Any) -> Finding:
    """The finding of a check; a FAIL with the error and its place if it raises."""
    try:
        return run(*given)
    except Exception as error:
        return Finding(FAIL, described(error))


def described(error: BaseException) -> str:
    """An exception and where it was raised, in one line without machine paths."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:300]} ({'/'.join(at.filename.split('/')[-2:])}:{at.lineno})"
