"""What is read from a stream: tool calls, thinking, refusals; the pieces are those of OpenAI's client."""

from typing import Any

import pytest
from openai.types.chat.chat_completion_chunk import Choice

from vllm_nld.evaluate.asking import Answer, Call, Reply, answer_of, take
from vllm_nld.evaluate.variant import Variant


def piece(**delta: Any) -> Choice:
    return Choice.model_validate({"index": 0, "delta": delta, "finish_reason": None})


def call(index: int, name: str | None, arguments: str) -> dict[str, Any]:
    return {"index": index, "function": {"name": name, "arguments": arguments}}


def test_tool_calls_are_pieced_together_and_written_as_the_model_does() -> None:
    reply, calls = Reply(), {}  # type: ignore[var-annotated]  # filled below
    assert not take(reply, piece(role="assistant", content=""), calls)
    assert take(reply, piece(tool_calls=[call(0, "weather", '{"city":')]), calls)
    assert take(reply, piece(tool_calls=[call(0, None, '"Lima"}'), call(1, "time", "{}")]), calls)
    assert [calls[index].render() for index in (0, 1)] == [
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Lima"}}\n</tool_call>',
        '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>',
    ]
    assert '"arguments": {"ci}' in Call("weather", '{"ci').render(), "cut at max_tokens"


def test_thinking_is_kept_and_not_judged() -> None:
    reply: Reply = Reply()
    assert take(reply, piece(reasoning="4 or 5?"), {}) and take(reply, piece(content="4"), {})
    answer = answer_of([reply])
    assert answer.text == "<think>4 or 5?</think>4" and answer.final == "4"


def test_only_the_last_answer_of_a_conversation_is_judged() -> None:
    answer = answer_of(
        [Reply(text="One.", tokens=2, first=0.1, seconds=1), Reply(text="Two.", tokens=3, first=0.2, seconds=2)]
    )
    assert answer.text == "One.\n\nTwo." and answer.final == "Two."
    assert (answer.tokens, answer.firsts, answer.seconds) == (5, (0.1, 0.2), 3)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I cannot do this.", True),
        ("Sorry, no.", True),
    ]
    + [("Use a cache.", False), ("", False), ("Sorry means regret.", False)],
)
def test_answers_that_begin_like_a_refusal_are_counted(text: str, refused: bool) -> None:
    assert answer_of([Reply(text=text)]).refused is refused


def test_refusals_of_the_api_are_counted() -> None:
    reply = Reply()
    take(reply, piece(refusal="No."), {})
    assert answer_of([reply]).refused and answer_of([reply]).text == "No."


def test_answers_survive_storing() -> None:
    answer = answer_of([Reply(text="x", gaps=(1.0, 2.0), first=0.5)], error=None)
    assert Answer.load(answer.dump()) == answer


@pytest.mark.parametrize(
    ("text", "name", "body"),
    [
        ("ar", "ar", {"nld_mode": "ar"}),
        ("diffusion,threshold=0.7", "diffusion, threshold 0.7", {"nld_mode": "diffusion", "nld_threshold": 0.7}),
        ("linear,nld_block_length=8", "linear, block length 8", {"nld_mode": "linear", "nld_block_length": 8}),
    ],
)
def test_variants_are_named_by_what_they_set(text: str, name: str, body: dict[str, Any]) -> None:
    variant = Variant.parse(text)
    assert variant.name == name and variant.body == {"vllm_xargs": body}


def test_default_variant_asks_for_nothing() -> None:
    assert Variant.parse("default").body == {} and Variant.parse("default").name == "default"
