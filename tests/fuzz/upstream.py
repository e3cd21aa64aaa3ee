"""What vLLM itself does, in mode ar as in the others: counted, not reported as failures.

An entry says why the behaviour is vLLM's and covers as little as possible.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import zip_longest

from tests.fuzz.case import Answer
from tests.fuzz.properties import Failure, unlike
from tests.fuzz.render import decode
from tests.fuzz.rules_text import grammar

MASKS = {"allowed_token_ids", "bad_words", "logit_bias", "stop_token_ids", "min_tokens", "thinking_token_budget"}
LATE = {"logit_bias", "allowed_token_ids", "stop_token_ids", "structured_outputs"}  # checked when a request is queued
CRASH = "never 500"
STREAMED = "stream = unstreamed"
UNNAMED = "a refusal names the field"
TAG = "<tool_call>"
TEXTS = ("texts", "structures", "stop_strings")


@dataclass(frozen=True)
class Known:
    """A behaviour of vLLM's: the reason for it, and the failures that it explains."""

    reason: str
    covers: Callable[[Failure], bool]


def half_character(failure: Failure) -> bool:
    """Whether the prompt ends within a character."""
    return decode(failure.case.raw, False).endswith("\ufffd")


def broken_call(failure: Failure) -> bool:
    """Whether the texts differ by a tool call, or the beginning of one, that the whole answer has as text."""
    pairs = zip(*(response.answers for response in failure.responses), strict=False)
    texts = [(whole.text, streamed.text) for whole, streamed in pairs if whole.text != streamed.text]
    return bool(texts) and all(TAG in whole or TAG.startswith(whole.removeprefix(part)) for whole, part in texts)


def unused_sample(failure: Failure) -> bool:
    """Whether beams at a temperature differ by tokens' alternatives only."""

    def bare(answer: Answer) -> Answer:
        return replace(answer, logprobs=answer.logprobs and tuple((*token[:2], ()) for token in answer.logprobs))

    if not failure.case.beams or not failure.case.options.get("temperature", 1) or len(failure.responses) != 2:
        return False
    one, other = (response.answers for response in failure.responses)
    pairs = list(zip_longest(one, other, fillvalue=Answer()))
    return not any(wrong for a, b in pairs for wrong in unlike(bare(a), bare(b)))


KNOWN: tuple[Known, ...] = (
    Known(
        "/inference/v1/generate refuses integers beyond 64 bits while it parses the body, as extra_args",
        lambda f: f.name == UNNAMED and f.case.endpoint == "generate" and "parameter=extra_args" in f.detail,
    ),
    Known(
        "/v1/messages makes a chat completion of the request, whose name for max_tokens is max_completion_tokens",
        lambda f: f.name == UNNAMED and f.case.endpoint == "messages" and "max_completion_tokens=" in f.detail,
    ),
    Known(
        "a request with one token to compute joins a running batch padded with placeholders for drafts, and the "
        "prompt's logprobs count them",
        lambda f: f.name == "prompt_logprobs" and "for 1 tokens" in f.detail,
    ),
    Known(
        "/v1/messages refuses a tool_choice by the name of the tool that is missing",
        lambda f: f.name == UNNAMED and f.case.endpoint == "messages" and "not found in the tools list" in f.detail,
    ),
    Known(
        "a prompt longer than the context is refused before anything else of the request is looked at",
        lambda f: f.name == UNNAMED and "maximum context length" in f.detail,
    ),
    Known(
        "after a prompt that ends within a character, the answer's text begins with the prompt",
        lambda f: f.name in TEXTS and half_character(f),
    ),
    Known(
        "a grammar and another restriction leave no token, or force one, which the grammar rejects: HTTP 500",
        lambda f: f.name == CRASH and grammar(f.case) and bool(MASKS & f.case.options.keys()),
    ),
    Known(
        "/v1/responses checks token ids and grammars after a stream has begun, so the stream breaks off",
        lambda f: (
            f.name == "answered"
            and f.case.endpoint == "responses"
            and "incomplete chunked read" in f.detail
            and bool(LATE & {f.case.bad, *f.case.options})
        ),
    ),
    Known(
        "structured_outputs that are no object fail while the body is parsed: HTTP 500",
        lambda f: f.name == CRASH and not isinstance(f.case.options.get("structured_outputs", {}), dict),
    ),
    Known(
        "a tool call that is cut or not JSON is text in a whole answer; a stream holds it back, or makes it a call",
        lambda f: f.name == STREAMED and bool(f.case.tools) and broken_call(f),
    ),
    Known(
        "each step of a beam search also samples a token, which it does not use but lists first in top_logprobs",
        unused_sample,
    ),
    Known(
        "stop strings delay a stream's text but not its ids, by which the reasoning parser finds the thought's end",
        lambda f: f.name == STREAMED and f.case.thinks and bool(f.case.options.get("stop")),
    ),
)


def known(failure: Failure) -> str | None:
    """The reason for which a failure is vLLM's own, or None."""
    return next((entry.reason for entry in KNOWN if entry.covers(failure)), None)
