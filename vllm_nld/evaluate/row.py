"""One row of a prompt file: what to ask, how, and how to judge the answer.

row = Row("17", messages=({"role": "user", "content": "2 + 2?"},), checks=({"numeric": 4},), tags=("math",))
row.options                     # {"max_tokens": 64, "temperature": 0.7}: fields of the request that the row sets
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vllm_nld.evaluate import checks

# Fields of a request that a row may set, with the types that they may have.
OPTIONS: dict[str, tuple[type, ...]] = {
    "max_tokens": (int,),
    "temperature": (int, float),
    "top_p": (int, float),
    "top_k": (int,),
    "min_p": (int, float),
    "seed": (int,),
    "stop": (str, list),
    "tools": (list,),
    "tool_choice": (str, dict),
    "response_format": (dict,),
    "presence_penalty": (int, float),
    "frequency_penalty": (int, float),
    "repetition_penalty": (int, float),
    "logit_bias": (dict,),
    "thinking_token_budget": (int,),
    "chat_template_kwargs": (dict,),
}
ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Row:
    """A conversation, or a plain text to be continued, with its options and checks.

    messages: up to the first question that the model answers. follow_ups: the user's later messages; each is asked
        after the model's own answer to the one before.
    text: instead of messages, a text that /v1/completions continues without a chat template.
    reference: an answer to compare with, for readers and judges; no check by itself.
    """

    name: str
    messages: tuple[Mapping[str, Any], ...] = ()
    follow_ups: tuple[Any, ...] = ()
    text: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    reference: str | None = None
    checks: tuple[Mapping[str, Any], ...] = ()
    tags: tuple[str, ...] = ("all",)

    def __post_init__(self) -> None:
        if bool(self.messages) == (self.text is not None):
            raise ValueError("a row needs either messages or a text")
        for message in self.messages:
            check_message(message)
        if self.messages and self.messages[-1]["role"] not in ("user", "tool"):
            raise ValueError(
                f"the last message is from the {self.messages[-1]['role']!r}, so there is nothing to answer: put a "
                "right answer into 'expected' or 'reference'"
            )
        for name, value in self.options.items():
            check_option(name, value)
        for check in self.checks:
            checks.validate(check)

    @property
    def question(self) -> str:
        """The last question, as text, for readers."""
        content = self.follow_ups[-1] if self.follow_ups else self.messages[-1]["content"] if self.messages else None
        return plain(content) if self.text is None else self.text

    def digest(self) -> str:
        """Changes with anything that the answer or its verdict depends on."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, default=str).encode()).hexdigest()[:16]


def plain(content: Any) -> str:
    """A message's content as text; images are only named."""
    if isinstance(content, str):
        return content
    parts = [part.get("text", f"[{part.get('type', 'part')}]") for part in content or ()]
    return "\n".join(parts)


def check_message(message: Any) -> None:
    """Raise ValueError unless this is a chat message."""
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise ValueError(
            f"a message must be an object with a role ({', '.join(ROLES)}), not {json.dumps(message)[:80]}"
        )
    content = message.get("content")
    if not isinstance(content, (str, list)) and not message.get("tool_calls"):
        raise ValueError(f"a message's content must be a string or a list of parts, not {content!r}")
    if isinstance(content, list) and not all(isinstance(part, Mapping) and "type" in part for part in content):
        raise ValueError("each part of a message's content must be an object with a type")


def check_option(name: str, value: Any) -> None:
    """Raise ValueError unless this is a value for this field of a request."""
    kinds = OPTIONS.get(name)
    if kinds is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
        raise ValueError(f"{name} must be {' or '.join(kind.__name__ for kind in kinds)}, not {json.dumps(value)[:80]}")
