"""Reads the answers of /v1/responses and /v1/messages, which are lists of typed items, as `Response`."""

import json
from collections import defaultdict
from typing import Any

from tests.fuzz.case import Answer, Response
from tests.fuzz.read import Json, content_logprobs, usage


def response_answer(body: Json) -> Answer:
    texts, thoughts, calls, logprobs = [], [], [], None
    for item in body["output"]:
        if item["type"] == "message":
            for part in item["content"]:
                texts.append(part["text"])
                found = content_logprobs({"content": part.get("logprobs")})
                logprobs = (logprobs or ()) + found if found else logprobs
        elif item["type"] == "reasoning":
            thoughts += [part["text"] for part in item.get("content") or ()]
        elif item["type"] == "function_call":
            calls.append((item["name"], item["arguments"]))
    finish = (body.get("incomplete_details") or {}).get("reason") or body["status"]
    return Answer("".join(texts), "".join(thoughts), tuple(calls), finish=finish, logprobs=logprobs)


def responses(body: Json) -> Response:
    return Response(200, answers=(response_answer(body),), usage=usage(body))


def responses_events(events: list[Json]) -> Response:
    """The answer that the deltas make. Where the last event tells another story, its text stands beside it."""
    text, thoughts, arguments = "", "", defaultdict(str)
    names: dict[str, str] = {}
    end: Json = {}
    for event in events:
        match event["type"]:
            case "response.output_text.delta":
                text += event["delta"]
            case "response.reasoning_text.delta":
                thoughts += event["delta"]
            case "response.function_call_arguments.delta":
                arguments[event["item_id"]] += event["delta"]
            case "response.output_item.added" if event["item"]["type"] == "function_call":
                names[event["item"]["id"]] = event["item"]["name"]
            case "response.completed" | "response.incomplete" | "response.failed":
                end = event["response"]
    if not end:
        return Response(500, late=True, error="the stream has no last event")
    told = response_answer(end)
    calls = tuple((name, arguments[key]) for key, name in names.items())
    for streamed, final in ((text, told.text), (thoughts, told.reasoning), (calls, told.calls)):
        if streamed != final:
            return Response(500, late=True, error=f"the deltas say {streamed!r}, the last event {final!r}")
    return Response(200, answers=(Answer(text, thoughts, calls, finish=told.finish),), usage=usage(end))


def messages(body: Json) -> Response:
    blocks = body["content"]
    answer = Answer(
        text="".join(block["text"] for block in blocks if block["type"] == "text"),
        reasoning="".join(block["thinking"] for block in blocks if block["type"] == "thinking"),
        calls=tuple((block["name"], canonical(block["input"])) for block in blocks if block["type"] == "tool_use"),
        finish=body["stop_reason"],
        stop=body.get("stop_sequence"),
    )
    return Response(200, answers=(answer,), usage=usage(body))


def messages_events(events: list[Json]) -> Response:
    text, thoughts, end = "", "", None
    names: dict[int, str] = {}
    inputs: dict[int, str] = defaultdict(str)
    for event in events:
        if event["type"] == "content_block_start" and event["content_block"]["type"] == "tool_use":
            names[event["index"]] = event["content_block"]["name"]
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            text += delta.get("text") or ""
            thoughts += delta.get("thinking") or ""
            inputs[event["index"]] += delta.get("partial_json") or ""
        elif event["type"] == "message_delta":
            end = event
    if end is None:
        return Response(500, late=True, error="the stream has no message_delta")
    calls = tuple((name, canonical(inputs[index])) for index, name in names.items())
    reason, stop = end["delta"].get("stop_reason"), end["delta"].get("stop_sequence")
    return Response(200, answers=(Answer(text, thoughts, calls, finish=reason, stop=stop),), usage=usage(end))


def canonical(value: Any) -> str:
    """Arguments, which come as an object or as its JSON text."""
    try:
        return json.dumps(json.loads(value or "{}") if isinstance(value, str) else value, sort_keys=True)
    except json.JSONDecodeError:
        return f"not JSON: {value!r}"
