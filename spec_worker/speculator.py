"""Drafting in vLLM's worker: the target model fills blocks for itself by bidirectional passes, in every mode.

vLLM calls `SelfSpeculator.propose` after every target forward. It starts a block, [anchor, mask x (b - 1)], after the
accepted tokens of each request in the step's plan, fills the blocks, and returns them as drafts for vLLM's rejection
sampler. `accept.py` decides what happens to them in each mode.

    plan.py     which requests draft, and how many tokens
    fill.py     passes until every position is decided
    harvest.py  blocks that the target forward has drafted itself, in groups of masks
    trees.py    the likeliest paths through a block, verified in place of its chain
    forward.py  one pass: inputs, attention, CUDA graphs

With synchronous scheduling, a step's tokens reach its clients only when `propose` has returned, so drafting is put off
until the next step begins. By then it is also known which requests have ended, and nothing is drafted for them.

Contract: KV is written to lookahead slots only, and the next target forward overwrites every slot that it keeps.
Only the drafts outlive a call. No step waits for the device, except to see whether a threshold needs another pass.
"""

from collections.abc import Container
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.attn_utils import init_attn_backend
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator
from vllm.v1.worker.gpu.states import RequestState

from attention_backend.moves import move_rows
from spec_worker.adapter_check import check_adapter
from spec_worker.blocks import Blocks, Layout
from spec_worker.candidates import Candidates
from spec_worker.fill import Filler
from spec_worker.forward import DraftForward
from spec_worker.graphs import DraftGraphs, graph_mode
from spec_worker.harvest import Harvest
from spec_worker.inputs import Pass
from spec_worker.plan import BlockBuilder, Plan, Planned, groups, planned
from spec_worker.slots import NO_LORA
from spec_worker.state import NldModelState
from spec_worker.user_lora import map_blocks, uses_lora
from vllm_nld.serving.speculation import block_length, draft_adapter


@dataclass(frozen=True, slots=True)
class Step:
    """A step whose target forward is done. R requests, N state slots, T tokens."""

    plan: Plan | None  # None in vLLM's warm-up, which has no scheduler
    input_batch: InputBatch
    hidden: torch.Tensor  # [T, hidden]
    verdict: tuple[torch.Tensor, ...]  # num_sampled, num_rejected, last_sampled, next_prefill_tokens of `propose`
    write: bool  # whether draft passes write KV


class SelfSpeculator(DraftModelSpeculator):
    """Fills blocks with the target's weights and KV cache."""

    model_state: NldModelState
    graphs: DraftGraphs  # vLLM's memory profile sets it to None and then requests a new one
    plan: Plan | None = None  # of the current step, see `obey`

    def __init__(self, vllm_config: VllmConfig, device: torch.device, req_states: RequestState) -> None:
        super().__init__(vllm_config, device)
        self.req_states = req_states
        self.puts_off = not vllm_config.scheduler_config.async_scheduling and not self.enable_adaptive_verification
        self._put_off: tuple[Step, int] | None = None  # what to draft, and the drafts per request
        self.block_length = block_length(vllm_config)
        self.num_query_per_req = self.block_length
        self.mask_token_id: int = vllm_config.model_config.hf_config.mask_token_id
        self.blocks_per_pass = self.max_num_tokens // self.block_length
        self.use_acceptance_estimator = False  # of adaptive verification, which gets each draft's probability

    # Set-up: the draft model is the target model, its layers and KV cache included.

    def load_model(self, target_model: nn.Module) -> None:
        """As vLLM's, but the drafter gets no features of images: they are in prompts, never in blocks."""
        super().load_model(target_model)
        self.supports_mm_inputs = False

    def load_draft_model(self, target_model: nn.Module, target_attn_layer_names: set[str]) -> nn.Module:
        adapter = draft_adapter(self.vllm_config)
        if adapter is not None:
            target_model.attach(adapter, self.max_num_tokens, self.dtype)
        self.candidates = Candidates(
            target_model,
            self.vocab_size,
            self.mask_token_id,
            self.max_model_len,
            self.draft_logits,
            self.use_fp64_gumbel,
        )
        self.passes = DraftForward(target_model, self.vllm_config, self.input_buffers)
        return target_model

    def set_attn(self, model_state, kv_cache_config, block_tables, target_input_buffers, target_attn_groups):  # type: ignore[no-untyped-def]  # vLLM's own signature
        """Build attention groups for the target's layers, with separate metadata builders."""
        context = self.vllm_config.model_config.max_model_len  # by now vLLM has fitted it to the memory
        if context < self.block_length:
            raise ValueError(
                f"the KV cache has room for {context} tokens, not for a block of {self.block_length}: give "
                "it more memory, or lower --additional-config nld.block_length"
            )
        self.builder = BlockBuilder(self.mask_token_id, self.block_length, context, self.device)
        self.model_state = model_state
        self.layers = self.vllm_config.compilation_config.static_forward_context
        self.kv_cache_config = kv_cache_config
        self.block_tables = block_tables
        self.target_input_buffers = target_input_buffers
        self.target_attn_groups = target_attn_groups
        self.attn_groups, self.attn_cg_support, _ = init_attn_backend(kv_cache_config, self.vllm_config, self.device)
        self.passes.attach(self.attn_groups, kv_cache_config, block_tables)
        sampling = model_state.sampler.sampling_states
        slots, trees = model_state.slots, model_state.trees
        trees.max_model_len = context
        self.filler = Filler(
            self.model,
            self._run,
            self.candidates,
            slots,
            sampling,
            block_tables,
            trees,
            reports=self.enable_adaptive_verification,
        )
        self.harvest = Harvest(self.candidates, slots, model_state.groups, sampling, self.block_length)

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        """Plan the graphs. This is also where the model can run for the first time, so check the adapter."""
        user_lora = uses_lora(self.model)
        mode = graph_mode(cudagraph_mode, self.attn_cg_support, user_lora)
        self.graphs = DraftGraphs(self.vllm_config, self.device, mode, decode_query_len=self.block_length)
        self.input_buffers.input_ids[: self.block_length] = self.mask_token_id
        self.input_buffers.positions[: self.block_length] = torch.arange(self.block_length, device=self.device)
        if user_lora:
            map_blocks(self.model, [NO_LORA], [self.block_length])
        check_adapter(self.model, lambda: self.passes.forward(self.block_length, None, None))

    def capture(self) -> None:
        """Capture the graphs, with the adapter on, and check the adapter again through one of them."""
        if not self.graphs.needs_capture():
            return
        with self.model.drafting():
            self.graphs.record(self.passes.forward, self.passes.inputs, self.attn_groups, self.kv_cache_config)
        check_adapter(self.model, lambda: self._run(self._lone_block()))

    def _run(self, given: Pass) -> torch.Tensor:  # [T, hidden]
        return self.passes.run(given, self.graphs)

    def _lone_block(self) -> Pass:
        """A pass over one block of masks, at the start of an empty KV cache."""
        blocks, width = self.kv_cache_config.num_blocks, self.passes.inputs.table.shape[1]
        first = np.zeros(1, dtype=np.int64)
        return Pass(
            layout=Layout(np.array([self.block_length]), self.block_length),
            ids=torch.full((1, self.block_length), self.mask_token_id, device=self.device),
            starts=torch.zeros(1, dtype=torch.int64, device=self.device),
            table=torch.arange(width, dtype=torch.int32, device=self.device).clamp(max=blocks - 1)[None],
            owned=torch.full((1,), min(blocks, width), dtype=torch.int32, device=self.device),
            block=first,
            row=first,
            slot=first,
            lora=np.full(1, NO_LORA),
            context=first,
        )

    # One step

    def obey(self, plan: Plan | None) -> None:
        """Set the plan of the next step; None in vLLM's warm-up, which has no scheduler."""
        self.plan = plan

    def catch_up(self, ended: Container[str]) -> None:
        """Draft what the last step put off, but nothing for requests that have ended or lost their KV since."""
        if self._put_off is None:
            return
        (step, count), self._put_off = self._put_off, None
        assert step.plan is not None
        plan = {name: drafts for name, drafts in step.plan.items() if name not in ended}
        if not plan:
            return
        self.draft(replace(step, plan=plan))
        drafts = self.draft_tokens[: step.input_batch.num_reqs]
        drafts[:, count:] = -1  # from here on as vLLM does after `propose`
        self.req_states.draft_tokens[step.input_batch.idx_mapping] = drafts

    def is_idle(self) -> bool:
        """Whether no request drafts in this step."""
        return self.plan is not None and not self.plan

    def propose(  # type: ignore[no-untyped-def]  # vLLM's own signature
        self,
        input_batch: InputBatch,
        attn_metadata,
        slot_mappings,
        last_hidden_states: torch.Tensor,
        aux_hidden_states,
        num_sampled: torch.Tensor,  # [R] int32
        num_rejected: torch.Tensor,  # [R] int32
        last_sampled: torch.Tensor,  # [N, 1] int64
        next_prefill_tokens: torch.Tensor,  # [1, N] int32
        temperature: torch.Tensor,  # [N] float32
        seeds: torch.Tensor,  # [N] int64
        dp_sync_state=None,
        dummy_run: bool = False,
        skip_attn_for_dummy_run: bool = False,
        mm_inputs=None,
        is_profile: bool = False,
        num_speculative_tokens: int | None = None,  # the largest number in the plan
    ) -> torch.Tensor:  # [R, K] int64
        """Draft for each request in the plan, now or in `catch_up`. The rows of other requests are not read."""
        requests = input_batch.num_reqs
        if skip_attn_for_dummy_run:
            self._profile(min(requests, self.blocks_per_pass))
            return self.draft_tokens[:requests]
        verdict = (num_sampled, num_rejected, last_sampled, next_prefill_tokens)
        step = Step(None if dummy_run else self.plan, input_batch, last_hidden_states, verdict, write=not dummy_run)
        if (accepted := self.model_state.trees.accepted(input_batch, num_sampled)) is not None:
            move_rows(self.layers, slot_mappings, *accepted)
        if self.puts_off and step.plan is not None and not input_batch.has_structured_output_reqs:
            self._put_off = step, num_speculative_tokens or 0
        else:
            self.draft(step)
        return self.draft_tokens[:requests]

    def draft(self, step: Step) -> None:
        """Fill `draft_tokens` for each request in the plan. The rows of other requests are not read."""
        slots, trees = self.model_state.slots, self.model_state.trees
        asked = planned(step.plan, step.input_batch, slots)
        if self.model_state.has_groups:
            asked = self._without_passes(asked, step)
        for group in groups(asked, slots, self.blocks_per_pass):
            blocks = self.builder.build(group, step.input_batch, slots, *step.verdict)
            self.filler.fill(blocks, step.input_batch, write=step.write)
            self._hand_over(blocks)
            if group.nodes.any():
                some = group.nodes > 0
                row, slot = async_tensor_h2d(np.stack([group.rows[some], group.slots[some]]), self.device)
                self.draft_tokens[row] = trees.tokens[slot]

    def _without_passes(self, asked: Planned, step: Step) -> Planned:
        """Draft for requests that have a group of masks, or are to get one after their prompt. Returns the others."""
        slots, num_sampled = self.model_state.slots, step.verdict[0]
        starts = asked.at_prompt & (slots.groups[asked.slots] > 0)
        if starts.any():
            self.draft_tokens[async_tensor_h2d(asked.rows[starts], self.device)] = self.mask_token_id
            self.harvest.sow_after_prompts(asked.where(starts))
        ready = ~starts & self.harvest.ready(asked, num_sampled)
        for group in groups(asked.where(ready), slots, self.max_num_reqs):
            self._hand_over(self.harvest.take(group, step.input_batch, step.hidden, num_sampled))
        return asked.where(~starts & ~ready)

    def _hand_over(self, blocks: Blocks) -> None:
        """Make the blocks' drafts the requests' draft tokens, with masks after them for those with groups."""
        rows, drafts = async_tensor_h2d(blocks.rows, self.device), self.block_length - 1
        if self.model_state.has_groups:
            self.harvest.sow(blocks)
            self.draft_tokens[rows, drafts:] = self.mask_token_id
        self.draft_tokens[rows, :drafts] = blocks.ids[:, 1:]
        if self.enable_adaptive_verification and blocks.certainty is not None:
            self.draft_token_confidence_probs[rows, :drafts] = blocks.certainty.float()

    def _profile(self, blocks: int) -> None:
        """Allocate what a pass over this many blocks needs, while vLLM profiles memory: there is no KV cache yet."""
        with self.model.drafting():
            hidden = self.passes.forward(blocks * self.block_length, None, None)
        self.candidates.profile(hidden.view(blocks, self.block_length, -1)[:, 1:].flatten(0, 1))
