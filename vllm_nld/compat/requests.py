"""Reading and checking a request's decoding parameters before it is scheduled, wherever a request can come in.

    endpoint                                       what carries the sampling parameters
    /v1/chat/completions, /v1/messages (batch too) ChatCompletionRequest
    /v1/completions                                CompletionRequest
    /v1/responses                                  ResponsesRequest
    the same three with use_beam_search            BeamSearchParams, which have no extra arguments
    /inference/v1/generate                         GenerateRequest, with sampling parameters of vLLM's own
    offline, gRPC, and whatever else is added      InputProcessor, which every request goes through

The HTTP requests are checked before a stream begins; the input processor is the last gate.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from vllm_nld.compat.patch import Change, patch

HTTP_REQUESTS = {
    "vllm.entrypoints.openai.chat_completion.protocol": "ChatCompletionRequest",
    "vllm.entrypoints.openai.completion.protocol": "CompletionRequest",
    "vllm.entrypoints.openai.responses.protocol": "ResponsesRequest",
}

BEAMS = tuple(name for name, kind in HTTP_REQUESTS.items() if kind != "ResponsesRequest")
MESSAGES = "vllm.entrypoints.anthropic.protocol"
TOKENS = "vllm.entrypoints.scale_out.token_in_token_out.serving"

_offer: Any = None  # the ServerModes of this process's API server, once it can take requests


def canonical(request: Any, extra: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The extra arguments of a request that came in over HTTP, with its record. Raises RequestError."""
    from vllm_nld.metrics.registry import REGISTRY
    from vllm_nld.serving.aliases import check_place, with_alias
    from vllm_nld.serving.errors import RequestError

    try:
        check_place(request.model_extra)  # fields of the body that vLLM does not know
        return _offer.canonical(with_alias(request.model, extra))
    except ValueError as error:
        REGISTRY.refused("mode")
        raise RequestError(str(error)) from None


def check(params: Any) -> None:
    """Raise VLLMValidationError for sampling parameters that the server or the request's mode cannot honor."""
    from vllm_nld.metrics.registry import REGISTRY
    from vllm_nld.serving.errors import RequestError
    from vllm_nld.serving.limits import check_integers
    from vllm_nld.serving.requests import check_combination

    check_integers(params)
    try:
        check_combination(params)
    except ValueError as error:
        REGISTRY.refused("mode")
        raise RequestError(str(error)) from None


@patch("vllm.v1.engine.input_processor")
def check_requests(module: Any) -> Iterator[Change]:
    """Parse a request's decoding parameters into one record before it is scheduled.

    Symptom: an `nld_` field is ignored, and nobody is told if it is unknown or impossible.
    Cause: vLLM passes extra arguments through unread, and a model cannot check incoming requests.
    Delete when: a model or its config can check sampling parameters.
    """
    from vllm_nld.model.configs import is_ours
    from vllm_nld.serving.errors import RequestError
    from vllm_nld.serving.requests import ServerModes, check_combination

    init, inherited = module.InputProcessor.__init__, module.InputProcessor.process_inputs

    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        if self.nld_modes is None or not hasattr(params, "extra_args"):
            return inherited(self, request_id, prompt, params, *args, **kwargs)
        try:
            extra = self.nld_modes.canonical(params.extra_args)
            check_combination(params, extra)
        except ValueError as error:
            raise RequestError(str(error)) from None
        request = inherited(self, request_id, prompt, params, *args, **kwargs)
        request.sampling_params.extra_args = extra  # vLLM's copy: the caller's object stays as it is
        return request

    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        global _offer
        init(self, vllm_config, *args, **kwargs)
        self.nld_modes = ServerModes.of(vllm_config) if is_ours(self.model_config) else None
        _offer = self.nld_modes or _offer

    yield module.InputProcessor, "__init__", __init__
    yield module.InputProcessor, "process_inputs", process_inputs


@patch(*HTTP_REQUESTS)
def read_http_modes(module: Any) -> Iterator[Change]:
    """Take the mode from a model name such as `nld:ar`, and refuse bad parameters before a stream begins.

    Symptom: a client that cannot send `vllm_xargs` cannot choose a mode; bad parameters of a streamed request become an
    error inside the stream, under HTTP 200; integers beyond 64 bits are refused naming `extra_args`, not the field.
    Cause: vLLM forgets which of its served names a request used, and checks parameters only when the stream is first
    read.
    Delete when: the served name reaches the sampling parameters, and a model can check those.
    """
    kind = getattr(module, HTTP_REQUESTS[module.__name__])
    inherited = kind.to_sampling_params

    def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _offer is None:
            return inherited(self, *args, **kwargs)
        self.vllm_xargs = canonical(self, self.vllm_xargs)  # vLLM copies them into the sampling parameters
        params = inherited(self, *args, **kwargs)
        check(params)
        return params

    yield kind, "to_sampling_params", to_sampling_params


@patch(*HTTP_REQUESTS, MESSAGES)
def declare_bool_fields(module: Any) -> Iterator[Change]:
    """Let `vllm_xargs` hold true and false. Affects every model.

    Symptom: `true` arrives as 1.
    Cause: vLLM declares extra arguments without bool, and Pydantic converts.
    Delete when: the declaration has bool.
    """
    kind = getattr(module, HTTP_REQUESTS.get(module.__name__, "AnthropicMessagesRequest"))
    extra = copy.copy(kind.model_fields["vllm_xargs"])
    extra.annotation = dict[str, str | bool | int | float | list[str | int | float]] | None
    yield kind, "__pydantic_fields__", kind.model_fields | {"vllm_xargs": extra}
    kind.model_rebuild(force=True)


@patch(*BEAMS)
def check_beam_searches(module: Any) -> Iterator[Change]:
    """Check the fields of a beam search, which scores one token at a time and so decodes like AR.

    Symptom: `nld_` fields of a request with `use_beam_search` are ignored, bad ones too.
    Cause: BeamSearchParams have no extra arguments.
    Delete when: they have.
    """
    kind = getattr(module, HTTP_REQUESTS[module.__name__])
    inherited = kind.to_beam_search_params

    def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _offer is not None and (self.vllm_xargs or self.model_extra or ":" in (self.model or "")):
            from vllm_nld.serving.decoding import Decoding
            from vllm_nld.serving.errors import RequestError

            decoding = Decoding.load(canonical(self, self.vllm_xargs))
            if decoding is not None and decoding.policy.takes_blocks:
                raise RequestError(
                    f"use_beam_search has no use in mode {decoding.mode!r}, which takes blocks as drafted: "
                    "leave nld_mode out, or set it to 'ar'"
                )
        return inherited(self, *args, **kwargs)

    yield kind, "to_beam_search_params", to_beam_search_params


@patch(TOKENS)
def read_token_requests(module: Any) -> Iterator[Change]:
    """Check requests to /inference/v1/generate, and take the mode from their model name.

    Symptom: a bad `nld_` field is HTTP 500 without a message, or 200 and an error in the stream; `model: "nld:ar"`
    decodes in the server's mode.
    Cause: the endpoint takes sampling parameters as they are and checks them when the engine gets them.
    Delete when: a model can check sampling parameters before a response begins.
    """
    inherited = module.ServingTokens.serve_tokens

    async def serve_tokens(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if _offer is not None:
            request.sampling_params.extra_args = canonical(request, request.sampling_params.extra_args)
            check(request.sampling_params)
        return await inherited(self, request, *args, **kwargs)

    yield module.ServingTokens, "serve_tokens", serve_tokens
