"""Drafting in vLLM's worker: the target model fills blocks for itself by bidirectional passes, in every mode.

`SelfSpeculator` is called after every target forward. It lays [anchor, mask x (b - 1)] after the accepted tokens of
each request that drafts, runs the target's own modules over all blocks at once, with every row seeing its whole block
and the prefix, and decides masked rows until none is left: all of them in one pass in linear mode, the sure ones a pass
in diffusion mode or above a draft threshold. vLLM verifies the proposal with its rejection sampler; `accept.py` says
how the verdict is read in each mode.

Contract: KV is written to lookahead slots only, and the next target forward overwrites every slot that it keeps;
nothing outlives a call but the proposal; no step waits for the device, unless a threshold asks for passes until every
position is sure enough. Blocks that are done leave the passes that follow. Where the target's decodes run in CUDA
graphs, so do passes over whole blocks, see `graphs.py`.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.forward_context import BatchDescriptor, set_forward_context
from vllm.triton_utils import triton
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata, build_slot_mappings_by_layer, init_attn_backend
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator

from attention_backend.masks import Block, kernel_causal
from spec_worker.adapter_check import check_adapter
from spec_worker.blocks import Layout
from spec_worker.candidates import Candidates
from spec_worker.commit import commit, probability, stopped
from spec_worker.graphs import DraftGraphs, graph_mode
from spec_worker.inputs import Inputs, Pass
from spec_worker.kernels import lay_blocks_kernel
from spec_worker.state import NldModelState
from spec_worker.user_lora import NO_LORA, map_blocks, user_loras
from vllm_nld.serving.settings import FIELD, Settings
from vllm_nld.serving.speculation import draft_adapter


@dataclass(slots=True)
class Blocks:
    """Blocks that are being filled together. R requests, B tokens a block at most, K = B - 1."""

    rows: np.ndarray  # [R], the requests' rows in the step's batch
    slots: np.ndarray  # [R], their state slots
    lengths: np.ndarray  # [R], their block lengths
    starts: torch.Tensor  # [R] int64, positions of the anchors
    ids: torch.Tensor  # [R, B] int64, the mask token where undecided
    masked: torch.Tensor  # [R, K] bool

    def drafts(self, block_length: int) -> np.ndarray:  # [R, K] bool
        """Where drafts belong to a block; as `masked` is at first, but for those past the context's end."""
        return np.arange(1, block_length) < self.lengths[:, None]


class SelfSpeculator(DraftModelSpeculator):
    """Fills blocks with the target's weights and KV cache."""

    supports_mm_inputs = False
    model_state: NldModelState
    graphs: DraftGraphs  # vLLM's memory profile drops it and asks for a new one

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        self.block_length = self.num_speculative_steps + 1
        self.num_query_per_req = self.block_length
        self.mask_token_id: int = vllm_config.model_config.hf_config.mask_token_id
        if Settings.of(vllm_config).draft_threshold and self.draft_logits is not None:
            raise ValueError(
                f"{FIELD}.draft_threshold keeps the surer of the sampled drafts, which no longer follow their logits: "
                "leave draft_sample_method of --speculative-config at greedy, or the threshold at 0"
            )
        self.candidates = Candidates(self.mask_token_id, self.max_model_len, self.draft_logits, self.use_fp64_gumbel)
        self.blocks_per_pass = self.max_num_tokens // self.block_length
        if not self.blocks_per_pass:
            raise ValueError(
                f"--max-num-batched-tokens {self.max_num_tokens} has no room for one block of {self.block_length} "
                "tokens: raise it, or lower the block length"
            )

    # Set-up: the draft model is the target model, its layers and KV cache included.

    def load_draft_model(self, target_model: nn.Module, target_attn_layer_names: set[str]) -> nn.Module:
        adapter = draft_adapter(self.vllm_config)
        if adapter is not None:
            target_model.attach(adapter, self.dtype)
        return target_model

    def set_attn(self, model_state, kv_cache_config, block_tables, target_input_buffers, target_attn_groups):  # type: ignore[no-untyped-def]  # vLLM's own signature
        """Attention groups over the target's layers, with metadata builders of their own."""
        self.model_state = model_state
        self.kv_cache_config = kv_cache_config
        self.block_tables = block_tables
        self.target_input_buffers = target_input_buffers
        self.target_attn_groups = target_attn_groups
        self.attn_groups, self.attn_cg_support, _ = init_attn_backend(kv_cache_config, self.vllm_config, self.device)
        if len(self.attn_groups) != 1:
            raise ValueError(
                f"self-speculation needs one kind of attention layer, not {len(self.attn_groups)} KV groups"
            )
        width = block_tables.input_block_tables[0].shape[1]
        self.inputs = Inputs(self.input_buffers, block_tables.block_sizes[0], width, self.max_model_len)

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        """Plan the graphs. vLLM calls this once the model can run: check the adapter here."""
        user_lora = user_loras(self.model) is not None
        mode = graph_mode(cudagraph_mode, self.attn_cg_support, user_lora)
        self.graphs = DraftGraphs(self.vllm_config, self.device, mode, decode_query_len=self.block_length)
        self.input_buffers.input_ids[: self.block_length] = self.mask_token_id
        self.input_buffers.positions[: self.block_length] = torch.arange(self.block_length, device=self.device)
        if user_lora:
            map_blocks(self.model, [NO_LORA], [self.block_length])
        check_adapter(self.model, lambda: self._forward(self.block_length, None, None))

    def capture(self) -> None:
        """Capture the graphs, with the adapter on, and check the adapter once more through one of them."""
        if not self.graphs.needs_capture():
            return
        with self.model.drafting():
            self.graphs.record(self._forward, self.inputs, self.attn_groups, self.kv_cache_config)
        check_adapter(self.model, lambda: self._run(self._lone_block()))

    def _lone_block(self) -> Pass:
        """Masks at the start of a KV cache that holds nothing yet."""
        blocks, width = self.kv_cache_config.num_blocks, self.inputs.table.shape[1]
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
            context=first,
        )

    # One step

    def propose(  # type: ignore[no-untyped-def]  # vLLM's own signature
        self,
        input_batch: InputBatch,
        attn_metadata,
        slot_mappings,
        last_hidden_states,
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
        num_speculative_tokens: int | None = None,
    ) -> torch.Tensor:  # [R, K] int64
        """Draft for each request of the batch that drafts; the others' rows are not read."""
        requests = input_batch.num_reqs
        if skip_attn_for_dummy_run:
            self._rehearse(min(requests, self.blocks_per_pass))
            return self.draft_tokens[:requests]
        kept = (num_sampled, num_rejected, last_sampled, next_prefill_tokens)
        for rows in self._groups(input_batch):
            blocks = self._lay(input_batch, rows, *kept)
            self._fill(blocks, input_batch, write=not dummy_run)
            self.draft_tokens[async_tensor_h2d(rows, self.device)] = blocks.ids[:, 1:]
        return self.draft_tokens[:requests]

    def _rehearse(self, blocks: int) -> None:
        """What a pass over so many blocks takes in memory, before there are requests or a KV cache."""
        with self.model.drafting():
            hidden = self._forward(blocks * self.block_length, None, None)
        self.model.compute_logits(hidden.view(blocks, self.block_length, -1)[:, 1:].flatten(0, 1)).argmax(dim=-1)

    def drafts(self, input_batch: InputBatch) -> bool:
        """Whether any request of the batch ever drafts."""
        index = input_batch.idx_mapping_np[: input_batch.num_reqs]
        return bool((self.model_state.slots.block_length[index] > 1).any())

    def _groups(self, input_batch: InputBatch) -> list[np.ndarray]:
        """Rows of the batch whose requests draft now: those that the adapter is for and those that it is not for, each
        in one group unless the blocks exceed the token budget."""
        slots = self.model_state.slots
        index = input_batch.idx_mapping_np[: input_batch.num_reqs]
        end = (input_batch.num_computed_tokens_np + input_batch.num_scheduled_tokens)[: input_batch.num_reqs]
        left = input_batch.prefill_len_np[: input_batch.num_reqs] - end
        slots.anchored[index] = slots.resumed[index] & slots.diffusion[index] & (left == 1)
        drafting = (slots.block_length[index] > 1) & ((left <= 0) | slots.anchored[index])
        kinds = [np.flatnonzero(drafting & (slots.diffusion[index] == diffusion)) for diffusion in (False, True)]
        most = self.blocks_per_pass
        return [rows[first : first + most] for rows in kinds for first in range(0, len(rows), most)]

    def _lay(self, input_batch: InputBatch, rows: np.ndarray, *kept: torch.Tensor) -> Blocks:
        """[anchor, mask ...] after the accepted tokens of these rows' requests; `kept` as `propose` is given it."""
        state, block_length, count = self.model_state.slots, self.block_length, len(rows)
        slots = input_batch.idx_mapping_np[rows]
        lengths = state.block_length[slots]
        starts = torch.empty(count, dtype=torch.int64, device=self.device)
        ids = torch.empty((count, block_length), dtype=torch.int64, device=self.device)
        masked = torch.empty((count, block_length - 1), dtype=torch.bool, device=self.device)
        lay_blocks_kernel[(count,)](
            starts,
            ids,
            masked,
            state.count,
            *async_tensor_h2d(np.stack([rows, lengths]), self.device),
            input_batch.positions,
            input_batch.query_start_loc,
            input_batch.idx_mapping,
            *kept,
            self.mask_token_id,
            block_length,
            self.max_model_len,
            COUNT=bool(state.diffusion[slots[0]]),
            WIDTH=triton.next_power_of_2(block_length),
        )
        return Blocks(rows, slots, lengths, starts, ids, masked)

    def _fill(self, blocks: Blocks, input_batch: InputBatch, write: bool) -> None:
        """Passes until no position is masked, or a stop token has none before it: `Decoding.passes` at most."""
        slots = self.model_state.slots
        most, diffusion = slots.passes[blocks.slots], bool(slots.diffusion[blocks.slots[0]])
        active, count = np.arange(len(blocks.rows)), 0
        open_ = blocks.drafts(self.block_length)
        with contextlib.nullcontext() if diffusion else self.model.drafting():
            if not diffusion and (most == 1).all():  # the only pass decides all there is, however sure it is
                found, _ = self._pass(blocks, active, open_, input_batch, 1, write, sure=True)
                blocks.ids[:, 1:] = torch.where(blocks.masked, found, blocks.ids[:, 1:])
                slots.drafted[blocks.slots] = 1
                return
            while len(active):
                count += 1
                candidates, confidence = self._pass(blocks, active, open_, input_batch, count, write)
                self._decide(blocks, active, candidates, confidence, count, diffusion)
                active = active[most[active] > count]
                if len(active):
                    open_ = blocks.masked.cpu().numpy()  # the one look at the device a pass
                    active = active[open_[active].any(axis=1)]

    def _decide(
        self,
        blocks: Blocks,
        active: np.ndarray,  # [A], blocks that were in the pass
        candidates: torch.Tensor,  # [A, K] int64
        confidence: torch.Tensor,  # [A, K] float64
        count: int,
        diffusion: bool,
    ) -> None:
        """Commit what a pass is sure of: all that is left, in a block's last pass."""
        slots = self.model_state.slots
        state, last = blocks.slots[active], slots.passes[blocks.slots[active]] == count
        threshold = async_tensor_h2d(np.where(last, 0.0, slots.threshold[state]), self.device)
        stop_ids = async_tensor_h2d(slots.stop_ids[state], self.device)
        chosen = async_tensor_h2d(active, self.device)
        masked, ids = blocks.masked[chosen], blocks.ids[chosen]
        decided = commit(confidence, masked, threshold)
        ids[:, 1:] = torch.where(decided, candidates, ids[:, 1:])
        masked &= ~decided
        masked &= ~stopped(ids[:, 1:], masked, stop_ids)[:, None]
        blocks.ids[chosen], blocks.masked[chosen] = ids, masked
        slots.drafted[state] = count
        if diffusion:
            slots.keep(state, ids[:, 1:], decided, confidence)

    def _pass(
        self,
        blocks: Blocks,
        active: np.ndarray,  # [A], blocks that are not done
        open_: np.ndarray,  # [R, K] bool, their undecided positions
        input_batch: InputBatch,
        count: int,
        write: bool,
        sure: bool = False,  # whether to take the model's word for it
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [A, K] int64 and float64
        """One bidirectional forward: a candidate for each undecided position, and how sure the model is of it."""
        given = self._gather(blocks, active, input_batch, write)
        loras = user_loras(self.model)
        if loras:
            map_blocks(self.model, [loras[row] for row in blocks.rows[active]], given.layout.lengths.tolist())
        hidden = self._run(given)
        block, place = np.nonzero(open_[active])
        rows = async_tensor_h2d(given.layout.rows(block, place + 1), self.device)
        logits = self.model.compute_logits(hidden[rows])  # [M, V], unshifted: a row predicts its own token
        state, sampling = blocks.slots[active][block], self.model_state.sampler.sampling_states
        diffusion = bool(self.model_state.slots.diffusion[state[0]])
        found = self.candidates.find(logits, state, place, blocks.starts, active[block], count, sampling, diffusion)
        shape = (len(active), self.block_length - 1)
        certainty = torch.ones_like(found, dtype=torch.float64) if sure else probability(logits, found)
        if len(found) == shape[0] * shape[1]:  # nothing is decided yet
            return found.view(shape), certainty.view(shape)
        where = async_tensor_h2d(np.ravel_multi_index((block, place), shape), self.device)
        candidates = torch.zeros(shape, dtype=torch.int64, device=self.device)
        candidates.view(-1)[where] = found
        confidence = torch.ones(shape, dtype=torch.float64, device=self.device)
        confidence.view(-1)[where] = certainty
        return candidates, confidence

    def _gather(self, blocks: Blocks, active: np.ndarray, input_batch: InputBatch, write: bool) -> Pass:
        """What a pass over these blocks runs over."""
        rows = blocks.rows[active]
        return Pass(
            layout=Layout(blocks.lengths[active], self.block_length),
            ids=blocks.ids,
            starts=blocks.starts,
            table=self.block_tables.input_block_tables[0],
            owned=self.block_tables.num_blocks.gpu[0],
            block=active,
            row=rows,
            slot=blocks.slots[active],
            context=input_batch.seq_lens_cpu_upper_bound.numpy()[rows],
            write=write,
        )

    def _run(self, given: Pass) -> torch.Tensor:  # [T, hidden]
        """The bidirectional forward over blocks one after another, in a graph where one fits."""
        shape = self.graphs.shape(given.layout)
        requests = shape.num_reqs or len(given.layout.lengths)
        self.inputs.fill(given, requests, shape.num_tokens)
        metadata, mappings = self._attention(given, requests, shape.num_tokens)
        if shape.cg_mode == CUDAGraphMode.FULL:
            return self.graphs.run_fullgraph(shape)[: given.layout.tokens]
        return self._forward(shape.num_tokens, metadata, mappings)

    def _attention(self, given: Pass, requests: int, tokens: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Metadata of a pass that has been laid out, and its KV slots by layer."""
        buffers = self.input_buffers
        longest = given.longest(requests, self.max_model_len)
        mappings = self.inputs.slots[:, :tokens]
        metadata = build_attn_metadata(
            attn_groups=self.attn_groups,
            num_reqs=requests,
            num_tokens=tokens,
            query_start_loc_gpu=buffers.query_start_loc[: requests + 1],
            query_start_loc_cpu=torch.from_numpy(given.layout.query_start_loc(requests)),
            max_query_len=int(given.layout.lengths.max()),
            seq_lens=buffers.seq_lens[:requests],
            max_seq_len=int(longest.max()),
            seq_lens_cpu_upper_bound=torch.from_numpy(longest),
            block_tables=[self.inputs.table[:requests]],
            slot_mappings=mappings,
            kv_cache_config=self.kv_cache_config,
            causal=kernel_causal(Block(self.block_length)),
            positions=buffers.positions[:tokens],
            is_prefilling=self.draft_is_prefilling[:requests],
        )
        return metadata, build_slot_mappings_by_layer(mappings, self.kv_cache_config)

    def _forward(
        self, tokens: int, metadata: dict[str, Any] | None, mappings: dict[str, torch.Tensor] | None
    ) -> torch.Tensor:  # [tokens, hidden]
        with set_forward_context(
            metadata,
            self.vllm_config,
            num_tokens=tokens,
            cudagraph_runtime_mode=CUDAGraphMode.NONE,
            slot_mapping=mappings,
            batch_descriptor=BatchDescriptor(num_tokens=tokens),
        ):
            return self.model.draft(self.input_buffers.input_ids[:tokens], self.input_buffers.positions[:tokens])
