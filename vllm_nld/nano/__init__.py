"""nano: the small tri-mode checkpoint that ships with vllm-nld, with its training recipe and held-out prompts.

Importing it costs nothing: torch and transformers come in only with training and measuring.

    path = checkpoint_path()                       # a folder that `vllm serve` takes
    for prompt in heldout():
        prompt.messages, prompt.expected
"""

import json
from pathlib import Path

from vllm_nld.nano.prompts import Prompt

__all__ = ["Prompt", "checkpoint_path", "heldout"]


def checkpoint_path() -> Path:
    """The folder of the shipped checkpoint, in the Hugging Face layout."""
    return Path(__file__).parent / "checkpoint"


def heldout() -> list[Prompt]:
    """Prompts that were never trained on, with the one right answer to each."""
    lines = (Path(__file__).parent / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Prompt(**{**row, "messages": tuple(row["messages"]), "tools": tuple(row.get("tools", ()))}) for row in rows]
