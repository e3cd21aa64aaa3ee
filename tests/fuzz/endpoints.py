"""The endpoints by which sampling parameters come in: how to ask each one, and how to read its answers.

The table `ENDPOINTS` is all that the rest of the fuzzer knows of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.fuzz import read, read_items
from tests.fuzz.case import Case, Response, Variant
from tests.fuzz.render import encode, rendered

PLAIN = frozenset({"temperature", "top_p", "top_k", "max_tokens", "stop"})
COMMON = PLAIN | {
    *("min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"),
    *("ignore_eos", "stop_token_ids", "include_stop_str_in_output", "skip_special_tokens"),
    *("logprobs", "structured_outputs"),
}
BATCH = COMMON | {"min_tokens", "bad_words", "allowed_token_ids", "prompt_logprobs", "spaces_between_special_tokens"}
SAMPLING = BATCH | {"n", "thinking_token_budget", "repetition_detection", "stream_interval"}
BEAMS = frozenset({"use_beam_search", "length_penalty"})
RENDERED = frozenset({"response_format", "truncate_prompt_tokens", "truncation_side"})
TOOLS = frozenset({"tool_choice", "parallel_tool_calls"})
CHAT = SAMPLING | RENDERED | TOOLS | {"include_reasoning", "reasoning_effort"} | BEAMS
COMPLETIONS = SAMPLING | RENDERED | {"echo", "token_prompt"} | BEAMS
RESPONSES = COMMON | TOOLS | {"include_reasoning"}


@dataclass(frozen=True)
class Endpoint:
    """takes: the options it has. renamed: those that have another name there. whole, events: read an answer."""

    path: str
    takes: frozenset[str]
    body: Callable[[Case], dict[str, Any]]
    whole: Callable[[dict[str, Any]], Response]
    events: Callable[[list[dict[str, Any]]], Response]
    renamed: dict[str, str] = field(default_factory=dict)
    streams: bool = True
    tokens: bool = False  # takes a prompt in tokens

    def request(self, case: Case, variant: Variant) -> dict[str, Any]:
        """The JSON body of one variant of a case."""
        body = {"model": variant.model} | self.body(case)
        if variant.stream:
            body |= {"stream": True}
            body |= (
                {} if self.path in ("/v1/messages", "/v1/responses") else {"stream_options": {"include_usage": True}}
            )
        if variant.xargs and self.path == "/inference/v1/generate":
            body["sampling_params"] |= {"extra_args": variant.xargs}
        elif variant.xargs:
            body["vllm_xargs"] = variant.xargs
        return body


def options(case: Case, *left_out: str, **renamed: str) -> dict[str, Any]:
    return {renamed.get(name, name): value for name, value in case.options.items() if name not in left_out}


def tools(case: Case) -> dict[str, Any]:
    if not case.tools:
        return {}
    choice = case.options.get("tool_choice", "auto")
    named = {"type": "function", "function": {"name": choice}}
    return {"tools": list(case.tools), "tool_choice": choice if choice in ("auto", "none", "required") else named}


def template(case: Case) -> dict[str, Any]:
    return {"chat_template_kwargs": {"enable_thinking": True}} if case.thinking else {}


def chat(case: Case) -> dict[str, Any]:
    body = options(case, "logprobs", "tool_choice") | template(case) | tools(case) | {"return_token_ids": True}
    if "logprobs" in case.options:
        body |= {"logprobs": True, "top_logprobs": case.options["logprobs"]}
    return body | {"messages": list(case.messages)}


def chat_batch(case: Case) -> dict[str, Any]:
    return {k: v for k, v in chat(case).items() if k != "tools"} | {"messages": [list(case.messages)] * 2}


def completions(case: Case) -> dict[str, Any]:
    body = options(case, "token_prompt") | {"return_token_ids": True}
    as_tokens = case.raw or case.options.get("token_prompt")
    return body | {"prompt": list(case.raw or encode(rendered(case))) if as_tokens else rendered(case)}


def responses(case: Case) -> dict[str, Any]:
    body = options(case, "logprobs", "tool_choice", max_tokens="max_output_tokens") | template(case)
    if "logprobs" in case.options:
        body |= {"include": ["message.output_text.logprobs"], "top_logprobs": case.options["logprobs"]}
    if case.tools:
        flat = [{"type": "function"} | tool["function"] for tool in case.tools]
        choice = case.options.get("tool_choice", "auto")
        named = {"type": "function", "name": choice}
        body |= {"tools": flat, "tool_choice": choice if choice in ("auto", "none", "required") else named}
    return body | {"input": [{"type": "message"} | message for message in case.messages]}


def messages(case: Case) -> dict[str, Any]:
    body = options(case, "tool_choice", stop="stop_sequences") | template(case)
    system = [message["content"] for message in case.messages if message["role"] == "system"]
    if case.tools:
        flat = [tool["function"] for tool in case.tools]
        body["tools"] = [{"name": f["name"], "input_schema": f["parameters"]} for f in flat]
        choice = case.options.get("tool_choice", "auto")
        kind = {"auto": "auto", "none": "none", "required": "any"}.get(choice, "tool")
        body["tool_choice"] = {"type": kind} | ({"name": choice} if kind == "tool" else {})
    body |= {"system": system[0]} if system else {}
    return {"max_tokens": 32} | body | {"messages": [m for m in case.messages if m["role"] != "system"]}


def generate(case: Case) -> dict[str, Any]:
    ids = list(case.raw or encode(rendered(case)))
    return {"token_ids": ids, "sampling_params": options(case, "output_mode")} | {
        "output_mode": case.options.get("output_mode", "text")
    }


ENDPOINTS: dict[str, Endpoint] = {
    "chat": Endpoint("/v1/chat/completions", CHAT, chat, read.chat, read.chat_events),
    "batch": Endpoint("/v1/chat/completions/batch", BATCH, chat_batch, read.chat, read.chat_events, streams=False),
    "completions": Endpoint(
        "/v1/completions", COMPLETIONS, completions, read.completions, read.completions_events, tokens=True
    ),
    "responses": Endpoint(
        "/v1/responses",
        RESPONSES,
        responses,
        read_items.responses,
        read_items.responses_events,
        renamed={"max_tokens": "max_output_tokens"},
    ),
    "messages": Endpoint(
        "/v1/messages",
        PLAIN | {"tool_choice"},
        messages,
        read_items.messages,
        read_items.messages_events,
        renamed={"stop": "stop_sequences"},
    ),
    "generate": Endpoint(
        "/inference/v1/generate", SAMPLING | {"output_mode"}, generate, read.tokens, read.tokens_events, tokens=True
    ),
}
