"""What one nano task is: a request, the one right answer, and the short plan that is thought before it.

    task = Task("count", "Count from 3 to 5.", "3, 4, 5", plan="From 3 to 5 in steps of 1.")

The plan is written only where thinking is on.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    """A request with exactly one right answer. Raises ValueError where either is empty."""

    category: str
    request: str
    answer: str
    plan: str
    tools: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not (self.request and self.answer and self.plan):
            raise ValueError(f"a {self.category} task needs a request, an answer and a plan")
