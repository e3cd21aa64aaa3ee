"""Every sampling feature answers under linear self-speculation as it does in AR mode, all of them in one batch.

With trees and groups of masks too: requests whose sampling depends on the path so far get the chain instead of a tree.

On nano, greedily, in fp32: a draft that is accepted past a penalty, a grammar or a stop shows as another answer.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.engines import engine
from tests.scale import spread
from tests.spec_worker.conftest import allow_async, linear, metric
from tests.spec_worker.features import (
    CHANGING,
    CHOICE,
    FEATURES,
    OPTIONS,
    PHONE,
    SAMPLED,
    TOKENS,
    answers,
    ask,
    prompts,
)
from vllm_nld.nano import checkpoint_path


@pytest.fixture(scope="module")
def ar() -> dict[str, list[Any]]:
    with engine(checkpoint_path(), additional_config={"nld": {"mode": "ar"}}, **OPTIONS) as llm:
        return ask(llm, FEATURES)


WAYS = ["async, trees", "sync", "async", "sync, groups", "sync, trees", "async, groups"]


@pytest.fixture(scope="module", params=spread(WAYS))
def drafted(request: pytest.FixtureRequest) -> Iterator[tuple[dict[str, list[Any]], dict[str, list[Any]]]]:
    """Greedy answers to FEATURES and sampled ones to SAMPLED."""
    with pytest.MonkeyPatch.context() as patch:
        if "async" in request.param:
            allow_async(patch)
        settings: dict[str, Any] = {"tree_nodes": 40} if "trees" in request.param else {}
        if "groups" in request.param:
            settings = {"mode": "quadratic"} | ({"groups": 3} if "async" in request.param else {})
        with engine(checkpoint_path(), **linear(16, **settings), **OPTIONS) as llm:
            greedy = ask(llm, FEATURES)
            assert metric(llm, "spec_decode_num_accepted_tokens") > 100
            yield greedy, ask(llm, SAMPLED)


@pytest.mark.parametrize("name", FEATURES)
def test_answers_are_those_of_ar_mode(name: str, ar: dict[str, list[Any]], drafted: Any) -> None:
    assert answers(drafted[0][name]) == answers(ar[name])


@pytest.mark.parametrize("name", CHANGING)
def test_the_feature_has_an_effect(name: str, ar: dict[str, list[Any]]) -> None:
    """Or the test above shows nothing."""
    assert answers(ar[name]) != answers(ar["plain"])


def chosen_logprobs(outputs: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of generated tokens: the chosen one's, and the three largest."""
    steps = [step for output in outputs for step in output.outputs[0].logprobs]
    tokens = [token for output in outputs for token in output.outputs[0].token_ids]
    chosen = [step[token].logprob for step, token in zip(steps, tokens, strict=True)]
    best = [sorted((entry.logprob for entry in step.values()), reverse=True)[:3] for step in steps]
    return torch.tensor(chosen), torch.tensor(best)


def test_logprobs_are_those_of_ar_mode(ar: dict[str, list[Any]], drafted: Any) -> None:
    ours, exact = chosen_logprobs(drafted[0]["logprobs"]), chosen_logprobs(ar["logprobs"])
    torch.testing.assert_close(ours, exact, atol=1e-3, rtol=1e-3)
    assert len(exact[0]) > TOKENS


def test_prompt_logprobs_are_those_of_ar_mode(ar: dict[str, list[Any]], drafted: Any) -> None:
    def given(outputs: list[Any]) -> torch.Tensor:
        """Of every prompt token but the first."""
        rows = [(o.prompt_token_ids, o.prompt_logprobs) for o in outputs]
        return torch.tensor([row[t].logprob for ids, rows_ in rows for t, row in zip(ids[1:], rows_[1:], strict=True)])

    ours, exact = given(drafted[0]["prompt logprobs"]), given(ar["prompt logprobs"])
    torch.testing.assert_close(ours, exact, atol=1e-3, rtol=1e-3)
    assert len(exact) == sum(len(prompt["prompt_token_ids"]) - 1 for prompt in prompts())


def test_top_k_1_is_greedy_in_every_completion(drafted: Any) -> None:
    for one, several in zip(drafted[0]["plain"], drafted[0]["n"], strict=True):
        assert [c.token_ids for c in several.outputs] == [one.outputs[0].token_ids] * 3


def test_sampled_answers_keep_to_the_grammar(drafted: Any) -> None:
    texts = {name: [output.outputs[0].text for output in outputs] for name, outputs in drafted[1].items()}
    assert {o.outputs[0].finish_reason for outputs in drafted[1].values() for o in outputs} == {"stop"}
    for text in texts["json schema"]:
        value = json.loads(text)
        assert value.keys() == {"name", "tags"} and set(value["tags"]) <= {"red", "green", "blue"}
    assert all(re.fullmatch(PHONE, text) for text in texts["regex"])
    assert set(texts["choice"]) <= set(CHOICE)


def test_worker_is_asked_for_drafts_by_a_grammar_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """With synchronous scheduling the question is a call to another process, each step."""
    with engine(checkpoint_path(), **linear(16), **OPTIONS) as llm:
        executor = llm.llm_engine.engine_core.engine_core.model_executor
        asked, inherited = [], executor.take_draft_token_ids
        monkeypatch.setattr(executor, "take_draft_token_ids", lambda: asked.append(1) or inherited())
        ask(llm, {"plain": FEATURES["plain"]})
        assert not asked
        ask(llm, {"choice": FEATURES["choice"]})
        assert asked
