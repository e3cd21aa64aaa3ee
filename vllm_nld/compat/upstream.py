"""vLLM's own bugs, which show with other models too. The patches are limited to NLD models where that is possible."""

from collections.abc import Iterator
from functools import wraps
from typing import Any

from vllm.logger import init_logger

from vllm_nld.compat.patch import Change, patch

logger = init_logger("vllm.plugins.nld")  # under "vllm", where its log level and format apply


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


@patch("vllm.entrypoints.cli.serve")
def check_arguments_first(module: Any) -> Iterator[Change]:
    """End `vllm serve` with one sentence if its model, tokenizer, port or flags can't be right. Affects every model.

    Symptom: a wrong path ends in a stack trace of 69 lines, a repository without network in one of 98 lines after 91
    seconds, a port in use in one after the model has been loaded, and flags that a configuration refuses in 54 lines.
    Cause: vLLM finds out when it needs them, and lets exceptions through.
    Delete when: `ServeSubcommand.validate` checks them, and `cmd` reports what configurations refuse.
    """
    from pydantic import ValidationError

    from vllm_nld.serving.preflight import first_mistake, refusal

    check, run = module.ServeSubcommand.validate, module.ServeSubcommand.cmd

    def validate(self: Any, args: Any) -> None:
        check(self, args)
        if why := first_mistake(args):
            raise SystemExit(f"vllm serve: {why}")

    @wraps(run)  # several API servers start with its arguments, pickled, and it is among them
    def cmd(args: Any) -> None:
        try:
            run(args)
        except ValidationError as error:
            logger.debug("Where a configuration was refused:", exc_info=True)
            raise SystemExit(f"vllm serve: {refusal(error)}") from None

    yield module.ServeSubcommand, "validate", validate
    yield module.ServeSubcommand, "cmd", staticmethod(cmd)


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


@patch("vllm.sampling_params")
def allow_min_p_and_logit_bias(module: Any) -> Iterator[Change]:
    """Take `min_p` and `logit_bias` on a server that drafts for itself.

    Symptom: requests with min_p or logit_bias are refused, in AR mode too.
    Cause: V1's rejection sampler could not apply them, so every server that speculates refuses them. That of Model
    Runner V2 applies all sampling parameters to each verified row, so the output follows the AR distribution.
    Delete when: `SamplingParams` refuses them for V1 only.
    """
    from vllm_nld.serving.speculation import shares_weights

    inherited = module.SamplingParams._validate_spec_decode

    def _validate_spec_decode(self: Any, speculative_config: Any) -> None:
        target = getattr(speculative_config, "target_model_config", None)
        if not shares_weights(speculative_config, target):
            inherited(self, speculative_config)

    yield module.SamplingParams, "_validate_spec_decode", _validate_spec_decode


SMALLEST_TOP_P = 1.2e-7  # float32's epsilon


@patch("vllm.v1.engine.input_processor")
def keep_a_token_at_tiny_top_p(module: Any) -> Iterator[Change]:
    """Raise a `top_p` below float32's precision to the least that keeps the most probable token.

    Symptom: at a temperature, a top_p of 1e-8 or less yields token 0 again and again.
    Cause: Model Runner V2's kernel compares with 1 - top_p in float32, which is then 1, and masks every token.
    Delete when: the kernel always keeps the most probable token.
    """
    from vllm_nld.model.configs import is_ours

    inherited = module.InputProcessor.process_inputs

    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = inherited(self, *args, **kwargs)
        if is_ours(self.model_config) and request.sampling_params is not None:
            request.sampling_params.top_p = max(request.sampling_params.top_p, SMALLEST_TOP_P)
        return request

    yield module.InputProcessor, "process_inputs", process_inputs
