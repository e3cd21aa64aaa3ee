"""The thinking budget: a maximum number of tokens between `<think>` and `</think>`, after which `</think>` is forced.

Every loop checks `forced` before it emits a token, so the budget is exact in every mode: a block that would exceed it
is cut there. Prompt tokens after an open `<think>` count too, because the chat template ends the prompt with one.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class Thinking:
    """Counts thinking tokens.

    budget: tokens allowed between start_id and end_id. used: tokens since the open start_id; None outside thinking.

    Raises ValueError for a negative budget or equal ids.
    """

    budget: int
    start_id: int
    end_id: int
    used: int | None = None

    def __post_init__(self) -> None:
        if self.budget < 0:
            raise ValueError(f"thinking_budget must be at least 0, not {self.budget}")
        if self.start_id == self.end_id:
            raise ValueError(f"think_start_id and think_end_id must differ; both are {self.start_id}")

    def read(self, tokens: Iterable[int]) -> "Thinking":
        """Observe several tokens, such as the prompt, and return self."""
        for token in tokens:
            self.observe(token)
        return self

    def observe(self, token: int) -> None:
        """Account for the sequence's next token."""
        if token == self.end_id:
            self.used = None
        elif self.used is not None:
            self.used += 1
        elif token == self.start_id:
            self.used = 0

    @property
    def forced(self) -> int | None:
        """end_id if the budget is used up, else None."""
        return self.end_id if self.used is not None and self.used >= self.budget else None
