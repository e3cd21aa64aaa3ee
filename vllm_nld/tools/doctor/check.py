"""One finding of the doctor, and a group of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. A failed check carries a remedy.

    summary: belongs in the short report as well.
    more: lines for the long report, such as a diff.
    """

    name: str
    passed: bool
    detail: str
    remedy: str = ""
    summary: bool = True
    more: str = ""

    def __post_init__(self) -> None:
        if not self.passed and not self.remedy:
            raise ValueError(f"the failed check {self.name!r} needs a remedy")


@dataclass(frozen=True, slots=True)
class Group:
    """Checks that belong together.

    title: what is checked, as the report's headline, which is printed while the checks run.
    vital: if one of these fails, the groups after it are not run.
    """

    title: str
    run: Callable[[], Iterable[Check]]
    vital: bool = False
