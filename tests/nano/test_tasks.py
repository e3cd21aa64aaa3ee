"""Tasks, the split and the shipped held-out prompts."""

import itertools
import json
import random

import pytest

from vllm_nld.nano import domain, heldout, split
from vllm_nld.nano.prompts import TASKS, draw, draw_heldout, is_heldout, stream


def requests(prompt):
    return [message["content"] for message in prompt.messages if message["role"] == "user"]


def test_the_stream_is_deterministic():
    assert list(itertools.islice(stream(3), 200)) == list(itertools.islice(stream(3), 200))
    assert list(itertools.islice(stream(3), 50)) != list(itertools.islice(stream(4), 50))


def test_no_heldout_request_is_ever_streamed():
    held = {requests(prompt)[-1] for prompt in heldout()}
    for prompt in itertools.islice(stream(0), 2000):
        assert not any(is_heldout(request) for request in requests(prompt))
        assert held.isdisjoint(requests(prompt))


def test_the_shipped_heldout_prompts_are_what_the_script_draws():
    assert split.FILE.read_text(encoding="utf-8") == split.render()
    assert heldout() == draw_heldout()


def test_heldout_prompts_cover_every_category_and_thinking():
    prompts = heldout()
    assert 120 <= len(prompts) <= 200
    assert {prompt.category for prompt in prompts} == set(TASKS)
    assert all(is_heldout(requests(prompt)[-1]) for prompt in prompts)
    assert 0.05 < sum(prompt.thinking for prompt in prompts) / len(prompts) < 0.25


@pytest.mark.parametrize("category", TASKS)
def test_the_same_request_has_one_answer(category):
    rng, answers = random.Random(11), {}
    for _ in range(500):
        prompt = draw(rng, category)
        key = json.dumps([requests(prompt), prompt.tools])
        assert answers.setdefault(key, prompt.expected) == prompt.expected


@pytest.mark.parametrize("category", ["json", "tool_call", "dataclass", "class", "function"])
def test_answers_are_valid(category):
    rng = random.Random(12)
    for _ in range(100):
        answer = draw(rng, category).expected
        if category == "json":
            json.loads(answer)
        elif category == "tool_call":
            call = json.loads(answer.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"))
            assert set(call) == {"name", "arguments"}
        else:
            compile(answer, "<answer>", "exec")


def test_the_unseen_domain_is_deterministic_and_its_held_out_side_is_apart():
    rows, held = domain.prompts(300, seed=3), domain.held_out(50, 20)
    assert rows == domain.prompts(300, seed=3) != domain.prompts(300, seed=4)
    assert sum(row["category"] == domain.DOMAIN for row in rows) == 100
    asked = {row["messages"][-1]["content"] for row in rows}
    assert not asked & {row["messages"][-1]["content"] for row in held}
