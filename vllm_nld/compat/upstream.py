"""vLLM's own bugs, which show with other models too. The patches are limited to NLD models where that is possible."""

from collections.abc import Iterator
from typing import Any

from vllm_nld.compat.patch import Change, patch


@patch("vllm.v1.engine.input_processor")
def refuse_oversized_lists(module: Any) -> Iterator[Change]:
    """Refuse lists of token ids that are longer than the worker has room for.

    Symptom: a single request with 129 stop_token_ids and min_tokens, with 1025 allowed_token_ids, or with bad_words of
    1025 tokens ends the whole server.
    Cause: Model Runner V2 keeps these lists in tensors of fixed size and checks their length in the worker, which does
    not survive the error.
    Delete when: `SamplingParams.verify` checks the lengths.
    """
    from vllm_nld.model.configs import is_ours
    from vllm_nld.serving.limits import check_sizes

    inherited = module.InputProcessor.process_inputs

    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = inherited(self, *args, **kwargs)
        ours = is_ours(self.model_config) and self.vllm_config.use_v2_model_runner
        if ours and request.sampling_params is not None:
            check_sizes(request.sampling_params)
        return request

    yield module.InputProcessor, "process_inputs", process_inputs


@patch("vllm.v1.engine.async_llm")
def abort_requests_at_shutdown(module: Any) -> Iterator[Change]:
    """Abort the requests that are still running when --shutdown-timeout is over. Affects every model.

    Symptom: after SIGTERM and the timeout, their clients hang, and so does the API server until it is killed.
    Cause: `AsyncLLM.shutdown` ends the engine and the task that hands out its outputs, but not the requests that wait
    for them, and uvicorn waits for their connections to close.
    Delete when: `AsyncLLM.shutdown` ends the requests itself.
    """
    inherited = module.AsyncLLM.shutdown

    def shutdown(self: Any, timeout: float | None = None) -> None:
        inherited(self, timeout=timeout)
        handler = getattr(self, "output_handler", None)  # absent or None if there has never been a request
        if handler is not None and not handler.get_loop().is_closed():
            handler.get_loop().call_soon_threadsafe(abort_all, self.output_processor)

    yield module.AsyncLLM, "shutdown", shutdown


def abort_all(output_processor: Any) -> None:
    """Abort every request in progress."""
    output_processor.abort_requests(list(output_processor.request_states), internal=True)
