"""Reads the answers of each endpoint, whole or streamed, as `Response`."""

from collections import defaultdict
from typing import Any

from tests.fuzz.case import Answer, Response

Json = dict[str, Any]


def usage(body: Json) -> tuple[int, int] | None:
    counts = body.get("usage")
    if not counts:
        return None
    names = ("prompt_tokens", "completion_tokens") if "prompt_tokens" in counts else ("input_tokens", "output_tokens")
    return counts[names[0]], counts[names[1]]


def joined(parts: list[Any]) -> Any:
    """Lists end to end; None if no part says anything."""
    known = [part for part in parts if part is not None]
    return tuple(item for part in known for item in part) if known else None


def content_logprobs(logprobs: Json | None) -> tuple[Any, ...] | None:
    """Logprobs of the chat form. `token_id` stands in the place of the text if there is no tokenizer."""
    if not logprobs or logprobs.get("content") is None:
        return None

    def one(entry: Json) -> tuple[str, float]:
        return str(entry.get("token", entry.get("token_id"))), entry["logprob"]

    return tuple((*one(entry), tuple(map(one, entry["top_logprobs"]))) for entry in logprobs["content"])


def column_logprobs(logprobs: Json | None) -> tuple[Any, ...] | None:
    """Logprobs of the completions form."""
    if not logprobs:
        return None
    tops = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
    rows = zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True)
    return tuple((token, value, tuple((top or {}).items())) for token, value, top in rows)


def calls(entries: list[Json]) -> tuple[tuple[str, str], ...]:
    return tuple((entry["function"]["name"], entry["function"]["arguments"]) for entry in entries)


def chat(body: Json) -> Response:
    answers = tuple(
        Answer(
            text=choice["message"]["content"] or "",
            reasoning=choice["message"].get("reasoning") or "",
            calls=calls(choice["message"].get("tool_calls") or []),
            ids=joined([choice.get("token_ids")]),
            finish=choice["finish_reason"],
            stop=choice["stop_reason"],
            logprobs=content_logprobs(choice["logprobs"]),
        )
        for choice in body["choices"]
    )
    return Response(200, answers=answers, usage=usage(body), prompt_logprobs=joined([body.get("prompt_logprobs")]))


def by_choice(events: list[Json]) -> list[list[Json]]:
    """The pieces of each choice, in order."""
    pieces: dict[int, list[Json]] = defaultdict(list)
    for event in events:
        for choice in event.get("choices") or ():
            pieces[choice["index"]].append(choice)
    return [pieces[index] for index in sorted(pieces)]


def last(pieces: list[Json], name: str) -> Any:
    return next((piece[name] for piece in reversed(pieces) if piece.get(name) is not None), None)


def total(events: list[Json]) -> tuple[int, int] | None:
    return usage(next((event for event in reversed(events) if event.get("usage")), {}))


def streamed_calls(deltas: list[Json]) -> tuple[tuple[str, str], ...]:
    found: dict[int, list[str]] = defaultdict(lambda: ["", ""])
    for delta in deltas:
        for call in delta.get("tool_calls") or ():
            function = call.get("function") or {}
            found[call["index"]][0] += function.get("name") or ""
            found[call["index"]][1] += function.get("arguments") or ""
    return tuple((name, arguments) for name, arguments in found.values())


def chat_events(events: list[Json]) -> Response:
    answers = []
    for pieces in by_choice(events):
        deltas = [piece["delta"] for piece in pieces]
        answers.append(
            Answer(
                text="".join(delta.get("content") or "" for delta in deltas),
                reasoning="".join(delta.get("reasoning") or "" for delta in deltas),
                calls=streamed_calls(deltas),
                ids=joined([piece.get("token_ids") for piece in pieces]),
                finish=last(pieces, "finish_reason"),
                stop=last(pieces, "stop_reason"),
                logprobs=joined([content_logprobs(piece.get("logprobs")) for piece in pieces]),
            )
        )
    return Response(200, answers=tuple(answers), usage=total(events))


def completions(body: Json) -> Response:
    answers = tuple(
        Answer(
            text=choice["text"],
            ids=joined([choice.get("token_ids")]),
            finish=choice["finish_reason"],
            stop=choice["stop_reason"],
            logprobs=column_logprobs(choice["logprobs"]),
        )
        for choice in body["choices"]
    )
    prompt_logprobs = joined([choice.get("prompt_logprobs") for choice in body["choices"][:1]])
    return Response(200, answers=answers, usage=usage(body), prompt_logprobs=prompt_logprobs)


def completions_events(events: list[Json]) -> Response:
    return Response(
        200, answers=tuple(text_answer(pieces, column_logprobs) for pieces in by_choice(events)), usage=total(events)
    )


def text_answer(pieces: list[Json], logprobs: Any) -> Answer:
    return Answer(
        text="".join(piece.get("text") or "" for piece in pieces),
        ids=joined([piece.get("token_ids") for piece in pieces]),
        finish=last(pieces, "finish_reason"),
        stop=last(pieces, "stop_reason"),
        logprobs=joined([logprobs(piece.get("logprobs")) for piece in pieces]),
    )


def tokens(body: Json) -> Response:
    answers = tuple(text_answer([choice], content_logprobs) for choice in body["choices"])
    return Response(200, answers=answers, usage=usage(body), prompt_logprobs=joined([body.get("prompt_logprobs")]))


def tokens_events(events: list[Json]) -> Response:
    return Response(
        200, answers=tuple(text_answer(pieces, content_logprobs) for pieces in by_choice(events)), usage=total(events)
    )
