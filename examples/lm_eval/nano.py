"""Which of nano's held-out prompts the task asks: those of one question, without tools or thinking."""

from typing import Any


def answerable(documents: Any) -> Any:
    """The rows that a plain chat request can ask."""
    return documents.filter(lambda row: len(row["messages"]) == 1 and not row["thinking"] and not row["tools"])
