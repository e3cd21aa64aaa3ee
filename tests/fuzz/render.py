"""The nano tokenizer and chat template, for endpoints that take text or tokens, and for rules about tokens."""

import json
from functools import cache
from typing import Any

from jinja2 import Environment
from tokenizers import Tokenizer

from tests.fuzz.case import Case
from vllm_nld.nano import checkpoint_path

EOS = 11
MASK = json.loads((checkpoint_path() / "config.json").read_text())["mask_token_id"]
THINK_END = 13
VOCABULARY = 1024


@cache
def tokenizer() -> Any:
    return Tokenizer.from_file(str(checkpoint_path() / "tokenizer.json"))


@cache
def template() -> Any:
    return Environment().from_string((checkpoint_path() / "chat_template.jinja").read_text())


def encode(text: str) -> list[int]:
    return list(tokenizer().encode(text, add_special_tokens=False).ids)


def decode(ids: tuple[int, ...], skip_special_tokens: bool = True) -> str:
    return str(tokenizer().decode(list(ids), skip_special_tokens=skip_special_tokens))


def rendered(case: Case) -> str:
    """The conversation as text, as the server renders it."""
    return str(
        template().render(
            messages=case.messages,
            tools=list(case.tools) or None,
            enable_thinking=case.thinking,
            add_generation_prompt=True,
        )
    )
