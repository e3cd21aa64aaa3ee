"""The questions: nano's held-out tasks, or a file in the format of Spec-Bench, SPEED-Bench or vLLM's custom dataset.

    questions = read(tokenizer, None)                       # nano's, each with its one right answer
    questions = read(tokenizer, Path("question.jsonl"))     # {"turns": [...]}, {"messages": [...]} or {"prompt": ...}
    write(questions, path)                                  # for vLLM's client, --dataset-name custom

Every question is rendered with the chat template here, so all clients send the same tokens. A conversation is used up
to its first question, as in vLLM's own loaders of these files, with the system message before it. A row may also have
"expected", its one right answer, and "max_tokens".
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_nld.nano import heldout

NANO_TOKENS, OTHER_TOKENS = 320, 512  # maximum output tokens


@dataclass(frozen=True, slots=True)
class Question:
    """One request. `expected` is None if there is no single right answer."""

    category: str
    prompt: str  # rendered, generation prompt included
    max_tokens: int
    expected: str | None = None


def read(tokenizer: Any, path: Path | None) -> list[Question]:
    """The questions in a JSONL file or a folder's qualitative.jsonl; nano's if path is None."""
    if path is None:
        return nano(tokenizer)
    file = path / "qualitative.jsonl" if path.is_dir() else path  # SPEED-Bench comes as a folder
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = [json.loads(line) for line in lines]
    return [
        Question(
            str(row.get("category", "all")),
            render(tokenizer, conversation(row, file)),
            int(row.get("max_tokens", OTHER_TOKENS)),
            row.get("expected"),
        )
        for row in rows
    ]


def conversation(row: dict[str, Any], file: Path) -> list[dict[str, str]]:
    """A row's messages up to the first of the user's. Raises ValueError for a row in no supported format."""
    if "turns" in row:
        return [{"role": "user", "content": row["turns"][0]}]
    if "messages" in row:
        roles = [message["role"] for message in row["messages"]]
        if "user" not in roles:
            raise ValueError(f"{file}: a line's 'messages' must have one with the role 'user', not only {roles}")
        return row["messages"][: roles.index("user") + 1]
    if "prompt" in row:
        return [{"role": "user", "content": row["prompt"]}]
    raise ValueError(
        f"{file}: a line must have 'turns' (Spec-Bench), 'messages' (SPEED-Bench) or 'prompt', not {list(row)}"
    )


def nano(tokenizer: Any) -> list[Question]:
    """nano's held-out prompts without thinking, with categories interleaved so that any prefix is a mixture."""
    by_category: dict[str, list[Question]] = {}
    for prompt in heldout():
        if not prompt.thinking:
            text = render(tokenizer, prompt.messages, list(prompt.tools))
            question = Question(prompt.category, text, NANO_TOKENS, prompt.expected)
            by_category.setdefault(prompt.category, []).append(question)
    longest = max(map(len, by_category.values()))
    return [questions[i] for i in range(longest) for questions in by_category.values() if i < len(questions)]


def render(tokenizer: Any, messages: Sequence[dict[str, str]], tools: Sequence[Any] = ()) -> str:
    """A conversation rendered with the chat template, thinking off."""
    return tokenizer.apply_chat_template(
        list(messages), tools=list(tools) or None, add_generation_prompt=True, enable_thinking=False, tokenize=False
    )


def write(questions: Iterable[Question], path: Path) -> Path:
    """Write vLLM's custom format, for a client that skips the chat template."""
    rows = [json.dumps({"prompt": q.prompt, "output_tokens": q.max_tokens}) for q in questions]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path
