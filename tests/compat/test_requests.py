"""Decoding parameters are read and checked where a request comes in."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from tests.compat.conftest import options, without
from tests.engines import engine, greedy
from tests.metrics.conftest import Counted
from vllm_nld.compat import requests

BAD = {"nld_mode": "fast"}
PROMPT = [5, 20, 40]


def test_with_check_requests_the_engine_never_sees_it(counted: Counted) -> None:
    with pytest.raises(ValueError, match="nld_mode must be one of"):
        greedy(counted.llm, [PROMPT], 4, extra_args=BAD)
    assert not counted.llm.llm_engine.has_unfinished_requests()
    assert len(greedy(counted.llm, [PROMPT], 4)[0].token_ids) == 4


BODIES: dict[str, dict[str, Any]] = {
    "ChatCompletionRequest": {"messages": [{"role": "user", "content": "t5"}]},
    "CompletionRequest": {"prompt": "t5"},
    "ResponsesRequest": {"input": "t5"},
}


@pytest.mark.parametrize(("module", "name"), requests.HTTP_REQUESTS.items(), ids=requests.HTTP_REQUESTS.values())
def test_without_read_http_modes_the_model_name_says_nothing(module: str, name: str, counted: Counted) -> None:
    kind = getattr(importlib.import_module(module), name)

    def read(model: str, **extra: Any) -> Any:
        return kind(model=model, vllm_xargs=extra, **BODIES[name]).to_sampling_params(16, {}).extra_args

    with without(requests.read_http_modes):
        kind.model_rebuild(force=True)
        assert read("tiny:ar", theirs=True) == {"theirs": 1} and read("tiny:ar", theirs=True)["theirs"] is not True
        assert read("tiny", **BAD) == BAD, "an error only once the engine has it"
    assert read("tiny:ar", theirs=True) == {"nld_mode": "ar", "theirs": True}
    assert read("tiny", theirs=True)["theirs"] is True
    with pytest.raises(ValueError, match="nld_mode must be one of"):
        read("tiny", **BAD)
    assert counted("nld:requests_refused_total", reason="mode") == 1


def test_without_check_requests_the_engine_fails(checkpoint: Path) -> None:
    """The request is taken, and raises in a step."""
    from vllm import SamplingParams

    with without(requests.check_requests), engine(checkpoint, **options()) as llm:
        params = SamplingParams(max_tokens=4, extra_args=BAD)
        llm.llm_engine.add_request("bad", {"prompt_token_ids": PROMPT}, params)
        with pytest.raises(ValueError, match="nld_mode"):
            llm.llm_engine.step()
