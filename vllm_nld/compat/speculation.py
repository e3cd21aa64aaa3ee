"""Building our speculator in place of vLLM's, and not drafting more than anyone needs."""

import importlib
from collections.abc import Iterator
from typing import Any

from vllm_nld.compat.patch import Change, patch

SPECULATOR_MODULE = "spec_worker.speculator"
MODEL_RUNNER = "vllm.v1.worker.gpu.model_runner"


def is_ours(speculator: Any) -> bool:
    """Whether it is the self-speculator of an NLD model; the answer does not import it."""
    return type(speculator).__module__ == SPECULATOR_MODULE


@patch(MODEL_RUNNER)
def build_self_speculator(module: Any) -> Iterator[Change]:
    """Let Model Runner V2 build our speculator for an NLD model that drafts for itself.

    Symptom: `{"method": "draft_model", "model": <the served checkpoint>}` loads the weights twice and drafts one token
    at a time, causally.
    Cause: `init_speculator` is a fixed chain of methods, and the model runner imports it by name. The method
    `custom_class` takes a class path, but Model Runner V2 does not support it.
    Delete when: a plugin can register a speculator, or Model Runner V2 supports `custom_class`.
    """
    from vllm_nld.serving.speculation import drafts_for_itself

    inherited = module.init_speculator

    def init_speculator(vllm_config: Any, device: Any, req_states: Any) -> Any:
        if not drafts_for_itself(vllm_config):
            return inherited(vllm_config, device, req_states)
        return importlib.import_module(SPECULATOR_MODULE).SelfSpeculator(vllm_config, device, req_states)

    yield module, "init_speculator", init_speculator


@patch("vllm.config.vllm")
def reserve_block_slots(module: Any) -> Iterator[Change]:
    """Reserve KV slots for the whole draft block: the anchor and every draft.

    Symptom: if the last row of a draft block starts a new KV block, it has no slot, and the drafts get worse.
    Cause: for the method `draft_model` vLLM reserves one slot per draft token, because an autoregressive drafter needs
    none for its last token. A block drafter writes that row too; vLLM takes this into account for `dflash` only. Other
    rows of a step, nodes and masks, get their slots when they are scheduled.
    Delete when: the speculator can set `num_lookahead_tokens`.
    """
    from vllm_nld.serving.speculation import block_length, drafts_for_itself

    inherited = module.VllmConfig.num_lookahead_tokens.fget

    def num_lookahead_tokens(self: Any) -> int:
        return block_length(self) if drafts_for_itself(self) else inherited(self)

    yield module.VllmConfig, "num_lookahead_tokens", property(num_lookahead_tokens)


@patch("vllm.config.vllm")
def admit_one_block_budget(module: Any) -> Iterator[Change]:
    """Let a step's token budget be as small as one draft block.

    Symptom: `--max-num-batched-tokens` equal to the block length ends start-up: "does not have enough slots".
    Cause: from vLLM 0.33 on the budget must exceed `num_lookahead_tokens`. A block is not drafted on top of a step's
    budget, and verifying one takes exactly its length.
    Delete when: vLLM compares the budget with `max_num_new_slots_for_drafting` only, as vLLM 0.32 does.
    """
    from vllm_nld.serving.speculation import drafts_for_itself

    check, lookahead = module.VllmConfig._set_max_num_scheduled_tokens, module.VllmConfig.num_lookahead_tokens.fget
    checked: set[int] = set()  # ids of the configs whose budget is being checked

    def num_lookahead_tokens(self: Any) -> int:
        return lookahead(self) - (id(self) in checked)

    def _set_max_num_scheduled_tokens(self: Any) -> None:
        if not drafts_for_itself(self):
            return check(self)
        checked.add(id(self))
        try:
            return check(self)
        finally:
            checked.remove(id(self))

    yield module.VllmConfig, "num_lookahead_tokens", property(num_lookahead_tokens)
    yield module.VllmConfig, "_set_max_num_scheduled_tokens", _set_max_num_scheduled_tokens


@patch("vllm.config.speculative")
def charge_only_scheduled_tokens(module: Any) -> Iterator[Change]:
    """Charge a request's tokens to the step's budget, and nothing beyond them.

    Symptom: if --max-num-batched-tokens equals the block length, a diffusion block never fits and its request hangs.
    Cause: for the method `draft_model` vLLM adds one token per request, because an autoregressive drafter's input is
    longer than the target's. A block is not.
    Delete when: the speculator can set `max_num_new_slots_for_drafting`.
    """
    from vllm_nld.serving.speculation import shares_weights

    inherited = module.SpeculativeConfig.max_num_new_slots_for_drafting.fget

    def max_num_new_slots_for_drafting(self: Any) -> int:
        return 0 if shares_weights(self, self.target_model_config) else inherited(self)

    yield module.SpeculativeConfig, "max_num_new_slots_for_drafting", property(max_num_new_slots_for_drafting)


@patch(MODEL_RUNNER)
def hand_over_draft_plan(module: Any) -> Iterator[Change]:
    """Hand each step's draft plan to the speculator, see `spec_worker.plan`, after what the last step put off.

    Symptom: the worker drafts for requests that the scheduler lets draft nothing, and drafts more than is
    verified. With synchronous scheduling, a step's tokens wait for the next drafts.
    Cause: SchedulerOutput has one number of drafts for the whole batch, and `propose` gets no more than that. A
    speculator is not called between two steps.
    Delete when: SchedulerOutput has a number of drafts per request and hands it to the speculator, and a step's tokens
    are delivered before its drafts are made.
    """
    inherited = module.GPUModelRunner.execute_model

    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if is_ours(self.speculator):
            self.speculator.catch_up(scheduler_output.finished_req_ids | (scheduler_output.preempted_req_ids or set()))
            self.speculator.obey(getattr(scheduler_output, "nld_plan", None))
        return inherited(self, scheduler_output, *args, **kwargs)

    yield module.GPUModelRunner, "execute_model", execute_model


@patch("vllm.v1.engine.core")
def skip_draft_round_trip(module: Any) -> Iterator[Change]:
    """Ask the worker for its drafts only if a grammar has to see them.

    Symptom: with synchronous scheduling every step ends with a call to the worker's process, even in AR mode.
    Cause: the engine core asks after every step, although without a grammar the worker answers with placeholders.
    Delete when: the engine core skips the call itself if no request has a grammar.
    """
    inherited = module.EngineCore.post_step

    def post_step(self: Any, model_executed: bool) -> None:
        unseen = getattr(self.scheduler, "unseen_drafts", None)
        if unseen is None or self.async_scheduling or not model_executed or (drafts := unseen()) is None:
            return inherited(self, model_executed)
        if drafts.req_ids:
            self.scheduler.update_draft_token_ids(drafts)
        return None

    yield module.EngineCore, "post_step", post_step


@patch(MODEL_RUNNER)
def skip_idle_drafter(module: Any) -> Iterator[Change]:
    """Do not run the speculator in a step in which no request drafts.

    Symptom: on a server that can speculate, AR requests pay for drafts that nobody reads: 70 us per step.
    Cause: `GPUModelRunner.sample_tokens` runs the speculator after every step and copies its drafts.
    Delete when: a speculator can say that it has nothing to propose.
    """
    inherited = module.GPUModelRunner.sample_tokens

    def sample_tokens(self: Any, grammar_output: Any) -> Any:
        state, speculator, steps = self.execute_model_state, self.speculator, self.num_speculative_steps
        idle = (
            is_ours(speculator)
            and state is not None
            and state.input_batch is not None
            and not state.input_batch.num_draft_tokens
            and speculator.is_idle()
        )
        if not idle:
            return inherited(self, grammar_output)
        self.speculator, self.num_speculative_steps = None, 0
        self.draft_tokens_handler.req_ids = []  # forget the previous step's requests as well
        try:
            return inherited(self, grammar_output)
        finally:
            self.speculator, self.num_speculative_steps = speculator, steps

    yield module.GPUModelRunner, "sample_tokens", sample_tokens


@patch("vllm.v1.engine.core")
def calibrate_at_start(module: Any) -> Iterator[Change]:
    """Measure what a round takes as soon as an engine core has started, see `spec_worker.calibrate`.

    Symptom: mode `auto` starts with a guess of what block lengths cost and finds the best one by trial.
    Cause: no hook runs between the end of start-up and the first request.
    Delete when: a scheduler is told that its engine core is ready.
    """
    from vllm_nld.serving.speculation import drafts_for_itself

    inherited = module.EngineCore.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        inherited(self, *args, **kwargs)
        if drafts_for_itself(self.vllm_config):
            importlib.import_module("spec_worker.calibrate").calibrate(self)

    yield module.EngineCore, "__init__", __init__


@patch("vllm.v1.worker.gpu.cudagraph_utils")
def capture_chosen_lengths(module: Any) -> Iterator[Change]:
    """If `auto` is the server's mode, capture graphs of every block length that it chooses from.

    Symptom: a step with shorter blocks than the server's longest runs without full graphs.
    Cause: the graph manager captures one length, or those of a user's `num_speculative_tokens_per_batch_size`.
    Delete when: a plugin can tell the graph manager which lengths to capture.
    """
    from vllm_nld.serving.modes import AUTO
    from vllm_nld.serving.requests import ServerModes
    from vllm_nld.serving.speculation import drafts_for_itself

    inherited = module.CudaGraphManager._init_candidates

    def _init_candidates(self: Any) -> None:
        config, speculative = self.vllm_config, self.vllm_config.speculative_config
        asked = speculative.num_speculative_tokens_per_batch_size if speculative is not None else None
        most = config.num_speculative_tokens
        if asked or not drafts_for_itself(config) or (modes := ServerModes.of(config)).mode != AUTO:
            return inherited(self)
        lengths = importlib.import_module("spec_worker.controller").lengths_up_to(modes.rows)
        drafts = {length - 1 for length in lengths} | {most}
        if type(self).__module__ == "spec_worker.graphs":  # a tree's nodes are more than the drafts that it grows from
            drafts = {min(count, modes.block_length - 1) for count in drafts if count}
        few = sorted(drafts, reverse=True)[: self.max_num_reqs]
        # A number of drafts for each batch size: the manager captures all numbers that it finds in a schedule.
        speculative.num_speculative_tokens_per_batch_size = [(at, at, count) for at, count in enumerate(few, start=1)]
        speculative.num_speculative_tokens = few[0]
        try:
            return inherited(self)
        finally:
            speculative.num_speculative_tokens_per_batch_size = asked
            speculative.num_speculative_tokens = most

    yield module.CudaGraphManager, "_init_candidates", _init_candidates
