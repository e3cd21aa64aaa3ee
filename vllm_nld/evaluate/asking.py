"""Asks a server one row in one variant, as a stream, and times what arrives.

    client = connect(url)
    answer = await ask(client, "nano", row, variant, seed=17)
    answer.text, answer.firsts, answer.gaps, answer.error

A request that the server refuses, or that fails, is an answer with an `error`. Only a server that can't be reached
raises: Unreachable.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vllm_nld.evaluate.row import Row
from vllm_nld.evaluate.variant import Variant

MAX_TOKENS = 1024  # of rows that don't say
STANDARD: tuple[str, ...] = (
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "tools",
    "tool_choice",
    "response_format",
)
STANDARD += ("presence_penalty", "frequency_penalty", "logit_bias")
REFUSAL = re.compile(
    r"\s*(i['’]m sorry|i am sorry|sorry, |i can(no|['’])t\b|i am unable|i['’]m unable|as an ai\b)", re.IGNORECASE
)


class Unreachable(RuntimeError):
    """The server doesn't answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one row: the last answer, and the times of all its requests.

    tokens, prompt_tokens: of all requests, as the server counts them. firsts: seconds to the first token, by request.
    gaps: milliseconds between two pieces of a stream. seconds: from sending to the end, over all requests.
    final: the text that checks are about, without thinking and earlier answers; None if that is all there is.
    correct: None if nothing was checked. verdicts: by the check's position; None if a check wasn't carried out.
    """

    text: str | None
    digest: str
    final: str | None = None
    tokens: int = 0
    prompt_tokens: int = 0
    firsts: tuple[float, ...] = ()
    gaps: tuple[float, ...] = ()
    seconds: float = 0.0
    finish: str = ""
    error: str | None = None
    refused: bool = False  # the model answered that it won't
    correct: bool | None = None
    verdicts: tuple[bool | None, ...] = ()

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> "Answer":
        """From plain data, such as `asdict` and JSON make."""
        lists = {name: tuple(data[name]) for name in ("firsts", "gaps", "verdicts")}
        return cls(**{**data, **lists})

    def dump(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Reply:
    """One request's stream."""

    text: str = ""
    thinking: str = ""
    calls: str = ""
    refusal: str = ""
    finish: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    first: float = 0.0
    gaps: tuple[float, ...] = ()
    seconds: float = 0.0

    @property
    def whole(self) -> str:
        """All that the model wrote, thinking included."""
        return (f"<think>{self.thinking}</think>" if self.thinking else "") + self.text + self.calls + self.refusal


def key() -> str:
    """The server's API key, from VLLM_API_KEY, like `vllm serve`."""
    return os.environ.get("VLLM_API_KEY") or "none"


def connect(url: str, timeout: float = 600) -> Any:
    """An asynchronous client."""
    import openai

    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key(), max_retries=0, timeout=timeout)


def refusal(url: str, model: str, variant: Variant) -> str:
    """Why a server doesn't decode in this variant, in one line; empty if it does. Warms it up, too.

    Raises Unreachable if it doesn't answer.
    """
    import openai

    with openai.OpenAI(base_url=f"{url}/v1", api_key=key(), max_retries=0, timeout=600) as client:
        try:
            client.completions.create(model=model, prompt="1", max_tokens=32, temperature=0, extra_body=variant.body)
        except openai.APIConnectionError as error:
            raise Unreachable(f"{url} doesn't answer: {error.__cause__ or error}") from None
        except openai.APIStatusError as error:
            return f"HTTP {error.status_code}: {reason(error)}"
    return ""


def request(row: Row, variant: Variant, model: str, seed: int, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the OpenAI client's `create`, without the messages.

    defaults: fields for rows that don't set them. A seed that a row doesn't set is the same in every variant.
    """
    options: dict[str, Any] = {"temperature": 0, "max_tokens": MAX_TOKENS, "seed": seed, **defaults, **row.options}
    standard = {name: options.pop(name) for name in list(options) if name in STANDARD}
    extra = options | {**variant.body}
    if "vllm_xargs" in options and variant.body:
        extra["vllm_xargs"] = {**options["vllm_xargs"], **variant.body["vllm_xargs"]}
    return {
        "model": model,
        **standard,
        "extra_body": extra,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def ask(
    client: Any, model: str, row: Row, variant: Variant, seed: int, defaults: Mapping[str, Any] | None = None
) -> Answer:
    """Ask a row, and its follow-ups after the model's own answers."""
    import openai

    arguments = request(row, variant, model, seed, defaults or {})
    replies: list[Reply] = []
    try:
        if row.text is not None:
            replies.append(await stream(client.completions, prompt=row.text, **arguments))
        else:
            messages = [*map(dict, row.messages)]
            replies.append(await stream(client.chat.completions, messages=messages, **arguments))
            for question in row.follow_ups:
                messages += [{"role": "assistant", "content": replies[-1].text + replies[-1].calls}]
                messages += [{"role": "user", "content": question}]
                replies.append(await stream(client.chat.completions, messages=messages, **arguments))
    except openai.APITimeoutError:
        return answer_of(replies, "timeout: no answer within the time that --timeout gives")
    except openai.APIConnectionError as error:
        raise Unreachable(
            f"{client.base_url.host}:{client.base_url.port} doesn't answer: {error.__cause__ or error}"
        ) from None
    except openai.APIStatusError as error:
        return answer_of(replies, f"HTTP {error.status_code}: {reason(error)}")
    except openai.APIError as error:  # an error inside a stream
        return answer_of(replies, f"the stream broke off: {error.message}")
    return answer_of(replies)


def reason(error: Any) -> str:
    """A refused request's reason in one line."""
    body = error.body if isinstance(error.body, dict) else {}
    text = str(body.get("message") or body.get("error") or error.message)
    return " ".join(text.split())[:300]


async def stream(endpoint: Any, **arguments: Any) -> Reply:
    """Send one request and collect its stream."""
    reply, times, calls = Reply(), [], {}  # type: ignore[var-annotated]  # the latter are filled below
    begin = time.perf_counter()
    async for chunk in await endpoint.create(**arguments):
        now = time.perf_counter() - begin
        if chunk.usage:
            reply.tokens, reply.prompt_tokens = chunk.usage.completion_tokens, chunk.usage.prompt_tokens
        for choice in chunk.choices:
            reply.first = reply.first or now
            if take(reply, choice, calls):
                times.append(now)
            reply.finish = choice.finish_reason or reply.finish
    reply.seconds = time.perf_counter() - begin
    reply.calls = "\n".join(calls[index].render() for index in sorted(calls))
    reply.gaps = tuple(round(1000 * (after - before), 2) for before, after in zip(times, times[1:], strict=False))
    return reply


@dataclass(slots=True)
class Call:
    """A tool call, pieced together from a stream."""

    name: str = ""
    arguments: str = ""

    def render(self) -> str:
        """As the model writes it, so that an answer is the same text with and without a tool parser."""
        try:
            arguments = json.dumps(json.loads(self.arguments), ensure_ascii=False)
        except ValueError:
            arguments = self.arguments
        return f'<tool_call>\n{{"name": "{self.name}", "arguments": {arguments}}}\n</tool_call>'


def take(reply: Reply, choice: Any, calls: dict[int, Call]) -> bool:
    """Add a piece of a stream to the reply; whether there was any text in it."""
    delta = getattr(choice, "delta", None)
    if delta is None:  # of /v1/completions
        reply.text += choice.text or ""
        return bool(choice.text)
    thinking = getattr(delta, "reasoning", None) or getattr(delta, "reasoning_content", None) or ""
    reply.thinking += thinking
    reply.text += delta.content or ""
    reply.refusal += getattr(delta, "refusal", None) or ""
    for piece in delta.tool_calls or ():
        call = calls.setdefault(piece.index, Call())
        call.name += (piece.function and piece.function.name) or ""
        call.arguments += (piece.function and piece.function.arguments) or ""
    return bool(thinking or delta.content or delta.tool_calls or getattr(delta, "refusal", None))


def answer_of(replies: list[Reply], error: str | None = None) -> Answer:
    """The answer to a row from its requests' replies."""
    text = "\n\n".join(reply.whole for reply in replies)
    last = replies[-1] if replies else Reply()
    final = last.text + last.calls
    return Answer(
        text=text,
        digest=hashlib.sha256(text.encode()).hexdigest()[:16],
        final=None if final == text else final,
        tokens=sum(reply.tokens for reply in replies),
        prompt_tokens=sum(reply.prompt_tokens for reply in replies),
        firsts=tuple(round(reply.first, 4) for reply in replies),
        gaps=tuple(gap for reply in replies for gap in reply.gaps),
        seconds=round(sum(reply.seconds for reply in replies), 4),
        finish=last.finish,
        error=error,
        refused=bool(last.refusal or REFUSAL.match(last.text)),
    )
