"""Carrying our counts to the API server: vLLM's records have no field for them, and some events it does not count."""

import dataclasses
import importlib
from collections.abc import Iterator
from typing import Any

from vllm_nld.compat.patch import Change, patch
from vllm_nld.compat.speculation import MODEL_RUNNER, is_ours

REPORT_MODULE = "spec_worker.report"
STATS = "vllm.v1.metrics.stats"


def with_field(kind: type, name: str, annotation: Any, default: Any) -> Iterator[Change]:
    """The changes that give a dataclass another field, at its end. Its instances stay of the same class."""
    grown = dataclasses.make_dataclass(kind.__name__, [(name, annotation, default)], bases=(kind,))
    for generated in ("__init__", "__repr__", "__eq__", "__match_args__", "__dataclass_fields__"):
        yield kind, generated, vars(grown)[generated]
    yield kind, "__annotations__", kind.__annotations__ | {name: annotation}
    yield kind, name, default


@patch(STATS)
def add_scheduler_stats_field(module: Any) -> Iterator[Change]:
    """Give SchedulerStats, which a step's figures travel in, a field `nld`, see `vllm_nld.metrics.rounds`.

    Symptom: what the engine core counts per decoding mode does not arrive in the API server.
    Cause: SchedulerStats is encoded field by field, so any other attribute is lost.
    Delete when: SchedulerStats has a field for plugins.
    """
    yield from with_field(module.SchedulerStats, "nld", dict[str, Any] | None, None)


@patch(STATS)
def add_forward_count(module: Any) -> Iterator[Change]:
    """Give a request's speculative figures a field `forwards`, which our scheduler fills in.

    Symptom: nobody knows how many forwards (NFE) a request took if its blocks take several passes.
    Cause: RequestSpecDecodeMetrics is encoded field by field, so any other attribute is lost.
    Delete when: it has a field for a drafter's passes.
    """
    yield from with_field(module.RequestSpecDecodeMetrics, "forwards", int, 0)


@patch(MODEL_RUNNER)
def report_passes(module: Any) -> Iterator[Change]:
    """Send the worker's figures along with each step's tokens, see `spec_worker.report`.

    Symptom: forwards are miscounted if a block takes several passes, and a missing draft adapter goes unnoticed.
    Cause: ModelRunnerOutput has no field for a speculator's figures. It is pickled, so an extra attribute travels too.
    Delete when: it has such a field.
    """
    inherited = module.GPUModelRunner.sample_tokens

    def sample_tokens(self: Any, grammar_output: Any) -> Any:
        state, report = self.execute_model_state, None
        verifies = state is not None and state.input_batch is not None and state.input_batch.num_draft_tokens
        if verifies and is_ours(self.speculator):
            report = importlib.import_module(REPORT_MODULE).report(self, state.input_batch)
        output = inherited(self, grammar_output)
        if output is not None and report is not None:
            getattr(output, "model_runner_output", output).nld = report
        return output

    yield module.GPUModelRunner, "sample_tokens", sample_tokens


@patch("vllm.v1.engine.output_processor")
def tally_requests(module: Any) -> Iterator[Change]:
    """Tell the API server's RequestTally about every request, and about every token that a client gets.

    Symptom: request statistics do not say the mode, count tokens after a stop string, and leave out aborted requests.
    Cause: IterationStats is computed before tokens are cut, and a request that its client aborts gets no statistics.
    Delete when: stat loggers are told about each request: sampling parameters, tokens after cutting, aborts.
    """
    from vllm_nld.metrics.requests import serving

    processor = module.OutputProcessor
    add, process, abort = processor.add_request, processor.process_outputs, processor.abort_requests

    def add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        add(self, request, *args, **kwargs)
        if (tally := serving()) is not None:
            tally.add(request, self.request_states.get(request.request_id))

    def process_outputs(
        self: Any, engine_core_outputs: Any, engine_core_timestamp: Any = None, iteration_stats: Any = None, **more: Any
    ) -> Any:
        processed = process(self, engine_core_outputs, engine_core_timestamp, iteration_stats, **more)
        if iteration_stats is not None and (tally := serving()) is not None:
            given = tally.step(engine_core_outputs, self.request_states)
            iteration_stats.nld = [*getattr(iteration_stats, "nld", ()), *given]
        return processed

    def abort_requests(self: Any, *args: Any, **kwargs: Any) -> Any:
        aborted = abort(self, *args, **kwargs)
        if (tally := serving()) is not None:
            tally.end(aborted, "abort")
        return aborted

    yield processor, "add_request", add_request
    yield processor, "process_outputs", process_outputs
    yield processor, "abort_requests", abort_requests


@patch("vllm.v1.engine.input_processor")
def count_refusals(module: Any) -> Iterator[Change]:
    """Count requests that are refused because of their parameters.

    Symptom: a client that asks for something its mode cannot do shows up only as an HTTP status.
    Cause: parameters are checked before a request gets statistics, so no engine and no stat logger hears of it.
    Delete when: vLLM counts refused requests by reason.
    """
    from vllm.exceptions import VLLMClientError

    from vllm_nld.metrics.registry import REGISTRY

    inherited = module.InputProcessor.process_inputs

    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return inherited(self, *args, **kwargs)
        except (ValueError, VLLMClientError):
            REGISTRY.refused("parameters")
            raise

    yield module.InputProcessor, "process_inputs", process_inputs
