"""What is planted to see that a line of `python -m bench gpu_check` finds it.

The tables are beside the tests that plant them: what is broken, and what the line then says. A line without a fault
fails `test_every_line_finds_a_fault`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from bench.gpu_check.record import FAIL, Check, Finding, Setting, judge
from tests.scale import spread

Patch = pytest.MonkeyPatch
CPU = Setting(gpu=False, quick=True)
GPU = Setting(gpu=True)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is broken.

    plant: breaks it. What it returns, if anything, is given to the check in place of what its subject has opened.
    says: a part of the finding's text.
    """

    line: str
    broken: str
    plant: Callable[[Patch, Any], Any]
    says: str
    verdict: str = FAIL


def each(faults: Sequence[Fault]) -> Any:
    """Parametrize a test by faults."""
    return pytest.mark.parametrize("fault", spread(faults), ids=lambda fault: f"{fault.line}: {fault.broken}")


def runnable(checks: Sequence[Check]) -> Any:
    """Parametrize a test by the checks that have a CPU form."""
    return pytest.mark.parametrize("check", [c for c in checks if not c.gpu_only], ids=lambda check: check.name)


def find(fault: Fault, checks: Sequence[Check], opened: Any) -> None:
    """Plant a fault and see the line find it."""
    with Patch.context() as patch:
        given = fault.plant(patch, opened)
        found = of(checks, fault.line, opened if given is None else given)
    print(f"{fault.line} | {fault.broken} | {found.verdict} {found.text}")  # pytest -rP shows the whole table
    assert found.verdict == fault.verdict, found
    assert fault.says in found.text, found


def of(checks: Sequence[Check], name: str, given: Any) -> Finding:
    """The finding of one check."""
    return judge(next(check for check in checks if check.name == name).run, given)
