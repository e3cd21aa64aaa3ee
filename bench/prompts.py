"""The questions: nano's held-out tasks, or a prompt file in one of the layouts of `vllm_nld.evaluate.prompts`.

    questions = read(tokenizer, None)                       # nano's, each with its one right answer
    questions = read(tokenizer, Path("question.jsonl"))     # {"turns": [...]}, {"messages": [...]} or {"prompt": ...}
    write(questions, path)                                  # for vLLM's client, --dataset-name custom

Every question is rendered with the chat template here, so all clients send the same tokens. A conversation is used up
to its first question, as in vLLM's own loaders of these files, with the system message before it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_nld.evaluate import prompts
from vllm_nld.evaluate.row import Row

OTHER_TOKENS = 512  # maximum output tokens of a row that doesn't say


@dataclass(frozen=True, slots=True)
class Question:
    """One request. `expected` is None if there is no single right answer."""

    category: str
    prompt: str  # rendered, generation prompt included
    max_tokens: int
    expected: str | None = None


def read(tokenizer: Any, path: Path | None) -> list[Question]:
    """The questions of a file or of SPEED-Bench's folder; nano's, without thinking, if path is None.

    Raises ValueError for a row that can't be asked.
    """
    rows, problems = prompts.read(prompts.NANO if path is None else path)
    for problem in problems:
        if problem.fatal:
            raise ValueError(f"{path}: {problem}")
    if path is None:
        rows = prompts.interleave(row for row in rows if not thinks(row))
    return [question(tokenizer, row) for row in rows]


def thinks(row: Row) -> bool:
    return bool(row.options.get("chat_template_kwargs", {}).get("enable_thinking"))


def question(tokenizer: Any, row: Row) -> Question:
    """A row's first question, rendered."""
    exact = next((check["exact"] for check in row.checks if "exact" in check), None)
    prompt = row.text
    if prompt is None:
        first = [message["role"] for message in row.messages].index("user")
        prompt = render(tokenizer, row.messages[: first + 1], row.options.get("tools", ()))
    return Question(row.tags[0], prompt, row.options.get("max_tokens", OTHER_TOKENS), exact)


def render(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] = ()) -> str:
    """A conversation rendered with the chat template, thinking off."""
    return tokenizer.apply_chat_template(
        list(messages), tools=list(tools) or None, add_generation_prompt=True, enable_thinking=False, tokenize=False
    )


def write(questions: Iterable[Question], path: Path) -> Path:
    """Write vLLM's custom format, for a client that skips the chat template."""
    rows = [json.dumps({"prompt": q.prompt, "output_tokens": q.max_tokens}) for q in questions]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path
