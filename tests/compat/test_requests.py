"""Decoding parameters are read and checked where a request comes in."""

import asyncio
import importlib
from pathlib import Path
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError

from tests.compat.conftest import options, runner, without
from tests.engines import engine, greedy
from tests.metrics.conftest import Counted
from vllm_nld.compat import requests
from vllm_nld.serving.decoding import Decoding

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


def read(module: str, name: str, model: str = "tiny", **extra: Any) -> dict[str, Any] | None:
    """The extra arguments that a request's sampling parameters get."""
    kind = getattr(importlib.import_module(module), name)
    return kind(model=model, vllm_xargs=extra, **BODIES[name]).to_sampling_params(16, {}).extra_args


KINDS = pytest.mark.parametrize(("module", "name"), requests.HTTP_REQUESTS.items(), ids=requests.HTTP_REQUESTS.values())


@KINDS
def test_without_read_http_modes_the_model_name_says_nothing(module: str, name: str, counted: Counted) -> None:
    with without(requests.read_http_modes):
        assert read(module, name, "tiny:ar", theirs=3) == {"theirs": 3}
        assert read(module, name, **BAD) == BAD, "an error only once the stream is read"
        with pytest.raises(VLLMValidationError, match="extra_args integers"):
            read(module, name, nld_block_length=2**70)
    asked = read(module, name, "tiny:ar", theirs=3)
    assert asked is not None and asked["theirs"] == 3
    assert Decoding.load(asked) == Decoding("ar")
    with pytest.raises(VLLMValidationError, match="nld_mode must be one of"):
        read(module, name, **BAD)
    with pytest.raises(VLLMValidationError, match="nld_block_length must lie in"):
        read(module, name, nld_block_length=2**70)
    assert counted("nld:requests_refused_total", reason="mode") == 2


@KINDS
def test_fields_beside_vllm_xargs_are_refused(module: str, name: str, counted: Counted) -> None:
    """Where the OpenAI client's `extra_body` puts them; vLLM ignores them."""
    kind = getattr(importlib.import_module(module), name)
    request = kind(model="tiny", nld_mode="ar", theirs=3, **BODIES[name])
    with without(requests.read_http_modes):
        assert not request.to_sampling_params(16, {}).extra_args
    message = r'nld_mode has no effect there: send it as {"vllm_xargs": {"nld_mode": "ar"}}'
    with pytest.raises(VLLMValidationError, match=message):
        request.to_sampling_params(16, {})
    assert kind(model="tiny", theirs=3, **BODIES[name]).to_sampling_params(16, {}).extra_args


@KINDS
def test_without_declare_bool_fields_true_is_1(module: str, name: str, counted: Counted) -> None:
    kind = getattr(importlib.import_module(module), name)
    with without(requests.declare_bool_fields):
        kind.model_rebuild(force=True)
        assert (read(module, name, theirs=True) or {})["theirs"] is not True
    assert (read(module, name, theirs=True) or {})["theirs"] is True


@pytest.mark.parametrize("module", requests.BEAMS)
def test_without_check_beam_searches_fields_are_ignored(module: str, counted: Counted) -> None:
    name = requests.HTTP_REQUESTS[module]
    kind = getattr(importlib.import_module(module), name)

    def search(model: str = "tiny", **extra: Any) -> Any:
        return kind(model=model, vllm_xargs=extra, n=2, **BODIES[name]).to_beam_search_params(16, {})

    with without(requests.check_beam_searches):
        assert search(**BAD).beam_width == search("tiny:diffusion").beam_width == 2
    assert search(nld_mode="ar").beam_width == search("tiny:linear").beam_width == search().beam_width == 2
    with pytest.raises(VLLMValidationError, match="nld_mode must be one of"):
        search(**BAD)
    with pytest.raises(VLLMValidationError, match="use_beam_search has no use in mode 'diffusion'"):
        search("tiny:diffusion")
    with pytest.raises(VLLMValidationError, match="nld_mode has no effect there"):
        kind(model="tiny", n=2, nld_mode="ar", **BODIES[name]).to_beam_search_params(16, {})


def test_without_read_token_requests_the_mode_is_ignored(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint's handler, up to where it would look for the model: `tests/serving` has the whole of it."""
    from vllm.entrypoints.scale_out.token_in_token_out.protocol import GenerateRequest
    from vllm.entrypoints.scale_out.token_in_token_out.serving import ServingTokens
    from vllm.sampling_params import SamplingParams

    class Reached(Exception):
        pass

    async def reached(self: Any, request: Any) -> None:
        raise Reached

    monkeypatch.setattr(ServingTokens, "_check_model", reached)

    def serve(**extra: Any) -> Any:
        params = SamplingParams(max_tokens=4, extra_args=extra or None)
        request = GenerateRequest(token_ids=PROMPT, sampling_params=params, model="tiny:ar")
        with pytest.raises(Reached):
            asyncio.run(ServingTokens.__new__(ServingTokens).serve_tokens(request))
        return Decoding.of(request.sampling_params)

    with without(requests.read_token_requests):
        assert serve() is None and serve(**BAD) is None
    assert serve() == Decoding("ar")
    with pytest.raises(VLLMValidationError, match="nld_mode 'fast' contradicts the model name"):
        serve(**BAD)


def test_without_check_requests_fields_are_ignored(checkpoint: Path) -> None:
    """A bad mode is taken, and a good one makes no difference: AR requests draft."""
    with without(requests.check_requests), engine(checkpoint, **options()) as llm:
        model, passes = runner(llm).model, []
        inherited = model.draft
        model.draft = lambda *args: passes.append(1) or inherited(*args)
        assert greedy(llm, [PROMPT], 8, extra_args=BAD) and passes
        passes.clear()
        assert greedy(llm, [PROMPT], 8, extra_args={"nld_mode": "ar"}) and passes
