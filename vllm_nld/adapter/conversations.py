"""Prompts and the answers to them as token ids: what an adapter is trained and measured on.

rows = read(Path("prompts.jsonl"))              # "messages", "turns" or "prompt"; optional "answer", "category"
conversations = [encode(tokenizer, row) for row in rows if row.answer is not None]
train, heldout = split(conversations, share=0.1)
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ANSWERS = ("answer", "response", "expected", "completion")
ALL = "all"


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt. answer: the model's own text, if the file has it."""

    messages: tuple[dict[str, str], ...]
    answer: str | None = None
    category: str = ALL
    max_tokens: int | None = None
    tools: tuple[Any, ...] = ()
    thinking: bool = False


@dataclass(frozen=True, slots=True)
class Conversation:
    """Token ids of a rendered prompt and of the answer, its end token included. Raises ValueError if one is missing."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    category: str = ALL

    def __post_init__(self) -> None:
        if not self.prompt or len(self.answer) < 2:
            raise ValueError("a conversation needs a prompt and an answer of at least two tokens: nothing is drafted")

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt + self.answer


def read(file: Path) -> list[Row]:
    """The rows of a JSONL file. Raises ValueError that names the file, the line and what is possible."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append(row_of(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{file}, line {number}: {error}") from None
    if not rows:
        raise ValueError(f"{file} has no prompts")
    return rows


def row_of(raw: dict[str, Any]) -> Row:
    """A row of chat messages, of Spec-Bench or of plain prompts. Raises ValueError."""
    if "messages" in raw:
        messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in raw["messages"]]
    elif "turns" in raw:
        messages = [{"role": "user", "content": str(raw["turns"][0])}]
    elif "prompt" in raw:
        messages = [{"role": "user", "content": str(raw["prompt"])}]
    else:
        raise ValueError(f"a line must have 'messages', 'turns' or 'prompt', not {list(raw)}")
    answer = next((str(raw[name]) for name in ANSWERS if raw.get(name) is not None), None)
    if messages and messages[-1]["role"] == "assistant":
        answer = messages.pop()["content"] if answer is None else answer
    if not messages or not messages[-1]["content"].strip():
        raise ValueError("the prompt is empty")
    limit = int(raw["max_tokens"]) if raw.get("max_tokens") else None
    category, tools = str(raw.get("category", ALL)), tuple(raw.get("tools") or ())
    return Row(tuple(messages), answer, category, limit, tools, bool(raw.get("thinking", False)))


def render(tokenizer: Any, row: Row) -> tuple[int, ...]:
    """A prompt through the chat template, as the server renders it."""
    text = tokenizer.apply_chat_template(
        list(row.messages),
        tools=list(row.tools) or None,
        add_generation_prompt=True,
        enable_thinking=row.thinking,
        tokenize=False,
    )
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def encode(tokenizer: Any, row: Row, end: int) -> Conversation:
    """A row that has an answer. end: the token that ends a turn."""
    answer = tokenizer.encode(row.answer or "", add_special_tokens=False)
    return Conversation(render(tokenizer, row), (*answer, end), row.category)


def split(conversations: Sequence[Conversation], share: float) -> tuple[list[Conversation], list[Conversation]]:
    """Training and held-out conversations. A prompt's hash decides, so a prompt never changes sides.

    Raises ValueError if one side is empty.
    """
    if not 0 < share < 1:
        raise ValueError(f"the held-out share must lie between 0 and 1, not {share}")
    train, heldout = list[Conversation](), list[Conversation]()
    for conversation in conversations:
        (heldout if luck(conversation.prompt) < share else train).append(conversation)
    if not train or not heldout:
        raise ValueError(
            f"{len(conversations)} conversations split into {len(train)} to train on and {len(heldout)} held out: "
            "give more prompts, or another --heldout"
        )
    return train, heldout


def luck(prompt: Iterable[int]) -> float:
    """A number in [0, 1) from a prompt's hash."""
    digest = hashlib.blake2b(repr(tuple(prompt)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def fit(conversations: Sequence[Conversation], length: int) -> list[Conversation]:
    """Those of at most this many tokens, longer answers cut, so that a batch's memory is bounded."""
    kept = []
    for one in conversations:
        room = length - len(one.prompt)
        if room >= 2:
            kept.append(Conversation(one.prompt, one.answer[:room], one.category))
    return kept
