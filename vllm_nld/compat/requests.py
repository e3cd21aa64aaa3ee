"""Reading and checking a request's decoding parameters before it is scheduled."""

import copy
from collections.abc import Iterator
from typing import Any

from vllm_nld.compat.patch import Change, patch

HTTP_REQUESTS = {
    "vllm.entrypoints.openai.chat_completion.protocol": "ChatCompletionRequest",
    "vllm.entrypoints.openai.completion.protocol": "CompletionRequest",
    "vllm.entrypoints.openai.responses.protocol": "ResponsesRequest",
}

_offer: Any = None  # the ServerModes of this process's API server, once it can take requests


@patch("vllm.v1.engine.input_processor")
def check_requests(module: Any) -> Iterator[Change]:
    """Parse a request's decoding parameters into one record before it is scheduled.

    Symptom: an unknown or impossible `nld_` field in `vllm_xargs` is ignored, or raises in the engine and ends it.
    Cause: vLLM passes extra arguments through unread, and a model cannot check incoming requests.
    Delete when: a model or its config can check sampling parameters.
    """
    from vllm_nld.model.configs import is_ours
    from vllm_nld.serving.requests import ServerModes

    init, inherited = module.InputProcessor.__init__, module.InputProcessor.process_inputs

    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        if self.nld_modes is None or not hasattr(params, "extra_args"):
            return inherited(self, request_id, prompt, params, *args, **kwargs)
        extra = self.nld_modes.canonical(params.extra_args, params)
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
    error inside the stream, under HTTP 200; `true` arrives as 1.
    Cause: vLLM forgets which of its served names a request used, checks parameters only when the stream is first read,
    and declares extra arguments without bool.
    Delete when: the served name reaches the sampling parameters, and a model can check those.
    """
    from vllm_nld.metrics.registry import REGISTRY
    from vllm_nld.serving.aliases import with_alias

    kind = getattr(module, HTTP_REQUESTS[module.__name__])
    inherited = kind.to_sampling_params

    def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        params = inherited(self, *args, **kwargs)
        if _offer is not None:
            try:
                params.extra_args = _offer.canonical(with_alias(self.model, params.extra_args), params)
            except ValueError:
                REGISTRY.refused("mode")
                raise
        return params

    yield kind, "to_sampling_params", to_sampling_params
    extra = copy.copy(kind.model_fields["vllm_xargs"])
    extra.annotation = dict[str, str | bool | int | float | list[str | int | float]] | None
    yield kind, "__pydantic_fields__", kind.model_fields | {"vllm_xargs": extra}
    kind.model_rebuild(force=True)
