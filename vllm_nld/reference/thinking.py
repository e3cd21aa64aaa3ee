"""The thinking budget: at most so many tokens between `<think>` and `</think>`, then `</think>` is forced.

Every loop asks `forced` before it takes a token, so the budget is exact in all of them: a block that would run past it
ends there. Tokens of the prompt after an open `<think>` count too, as the chat template writes one there.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class Thinking:
    """Counts thinking tokens.

    budget: tokens allowed between start_id and end_id. used: tokens since an open start_id, None outside of thinking.
    """

    budget: int
    start_id: int
    end_id: int
    used: int | None = None

    def __post_init__(self) -> None:
        if self.budget < 0:
            raise ValueError(f"thinking_budget must be at least 0, not {self.budget}")
        if self.start_id == self.end_id:
            raise ValueError(f"think_start_id and think_end_id must differ, both are {self.start_id}")

    def read(self, tokens: Iterable[int]) -> "Thinking":
        """Observe several tokens, the prompt say; returns itself."""
        for token in tokens:
            self.observe(token)
        return self

    def observe(self, token: int) -> None:
        """Take note of the next token of the sequence."""
        if token == self.end_id:
            self.used = None
        elif self.used is not None:
            self.used += 1
        elif token == self.start_id:
            self.used = 0

    @property
    def forced(self) -> int | None:
        """end_id once the budget is used up, else None."""
        return self.end_id if self.used is not None and self.used >= self.budget else None
