"""Which of nano's held-out prompts the task asks."""

from typing import Any


def answerable(documents: Any) -> Any:
    """The rows that a plain chat request can ask: one question, without tools or thinking."""
    return documents.filter(lambda row: len(row["messages"]) == 1 and not row["thinking"] and not row["tools"])
