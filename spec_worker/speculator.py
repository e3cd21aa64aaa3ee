"""Linear self-speculation in vLLM's worker: the target model drafts for itself by bidirectional passes over a block.

`SelfSpeculator` is called after every target forward. It lays [anchor, mask x (B - 1)] after each request's accepted
tokens, runs the target's own modules over all blocks at once, with every row seeing its whole block and the prefix, and
proposes a token for each masked row. vLLM then verifies the proposal with its rejection sampler.

Contract: KV is written to lookahead slots only, and the next target forward overwrites every slot that it keeps;
nothing outlives a call but the proposal; no step waits for the device, unless a draft threshold asks for passes until
every position is sure enough.
"""

from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.forward_context import BatchDescriptor, set_forward_context
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata, build_slot_mappings_by_layer, init_attn_backend
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample
from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator

from attention_backend.masks import Block, kernel_causal
from spec_worker.adapter_check import check_adapter
from spec_worker.blocks import NO_SLOT, Step, lengths, lookahead_slots, places
from spec_worker.commit import commit
from spec_worker.user_lora import NO_LORA, map_blocks, user_loras
from vllm_nld.settings import FIELD, Settings
from vllm_nld.speculation import draft_adapter


class SelfSpeculator(DraftModelSpeculator):
    """Drafts B - 1 tokens a request with the target's weights and KV cache."""

    supports_mm_inputs = False

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        self.block_length = self.num_speculative_steps + 1
        self.num_query_per_req = self.block_length
        self.mask_token_id: int = vllm_config.model_config.hf_config.mask_token_id
        self.threshold = Settings.of(vllm_config).draft_threshold
        if self.threshold and self.draft_logits is not None:
            raise ValueError(
                f"{FIELD}.draft_threshold keeps the surer of the sampled drafts, which no longer follow their logits: "
                "leave draft_sample_method of --speculative-config at greedy, or the threshold at 0"
            )
        self.requests_per_pass = min(self.max_num_tokens // self.block_length, self.max_num_reqs)
        if not self.requests_per_pass:
            raise ValueError(
                f"--max-num-batched-tokens {self.max_num_tokens} has no room for one block of {self.block_length} "
                "tokens: raise it, or lower the block length"
            )
        rows = self.requests_per_pass * self.block_length
        self.query_start_loc_cpu = torch.arange(0, rows + 1, self.block_length, dtype=torch.int32)
        self.query_start_loc = self.query_start_loc_cpu.to(device)
        self.steps = torch.arange(1, self.block_length, device=device)  # [K], each draft's distance from its anchor

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

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        """The draft pass runs without a CUDA graph. vLLM calls this once the model can run: check the adapter here."""
        self.input_buffers.input_ids[: self.block_length] = self.mask_token_id
        self.input_buffers.positions[: self.block_length] = torch.arange(self.block_length, device=self.device)
        if user_loras(self.model) is not None:
            map_blocks(self.model, [NO_LORA], self.block_length)
        check_adapter(self.model, lambda: self._forward(self.block_length, None, None))

    def capture(self) -> None:
        """Nothing to capture."""

    # One step

    @torch.inference_mode()
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
        """Draft K tokens for each request of the batch."""
        requests = input_batch.num_reqs
        step = Step(
            positions=input_batch.positions,
            query_start_loc=input_batch.query_start_loc[: requests + 1],
            slots=input_batch.idx_mapping[:requests],
            num_sampled=num_sampled[:requests],
            num_rejected=num_rejected[:requests],
            last_sampled=last_sampled[:, 0],
            next_prompt=next_prefill_tokens[0],
        )
        anchors, starts = step.anchors(), step.starts()
        if self.draft_logits is not None:
            self._copy_request_inputs(requests, step.slots, temperature, seeds, dummy_run)
        loras = user_loras(self.model)
        for first in range(0, requests, self.requests_per_pass):  # one round, unless the blocks exceed the token budget
            rows = slice(first, min(first + self.requests_per_pass, requests))
            metadata, mappings = None, None
            if not skip_attn_for_dummy_run:
                bound = input_batch.seq_lens_cpu_upper_bound[rows] + self.block_length
                metadata, mappings = self._attention(step.slots, starts, rows, bound, write=not dummy_run)
            self._place(anchors[rows], starts[rows])
            if loras:
                map_blocks(self.model, loras[rows], self.block_length)
            with self.model.drafting():
                if self.threshold:
                    wanted = starts[rows, None] + self.steps < self.max_model_len
                    wanted &= step.num_sampled[rows, None] > 0
                    drafts = self._draft_until_sure(wanted, metadata, mappings)
                else:
                    drafts = self._draft(starts[rows], rows, metadata, mappings)
            self.draft_tokens[rows] = drafts
        return self.draft_tokens[:requests]

    def _place(self, anchors: torch.Tensor, starts: torch.Tensor) -> None:
        """Write [anchor, mask ...] and its positions into the input buffers."""
        count = len(anchors) * self.block_length
        ids = self.input_buffers.input_ids[:count].view(-1, self.block_length)
        ids.fill_(self.mask_token_id)
        ids[:, 0] = anchors
        positions = places(starts, self.block_length, self.max_model_len)
        self.input_buffers.positions[:count] = positions.flatten()

    def _attention(
        self,
        slots: torch.Tensor,  # [R]
        starts: torch.Tensor,  # [R]
        rows: slice,
        bound: torch.Tensor,  # [R] int32 on the CPU, no sequence of the pass is longer
        write: bool,
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Metadata of a bidirectional pass over these requests' blocks, and its KV slots by layer."""
        start, count = starts[rows], rows.stop - rows.start
        table = self.block_tables.input_block_tables[0][rows]
        owned = self.block_tables.num_blocks.gpu[0][slots[rows]]
        size = self.block_tables.block_sizes[0]
        mapping = lookahead_slots(start, self.block_length, table, owned, size, self.max_model_len)
        if not write:
            mapping.fill_(NO_SLOT)
        seq_lens = lengths(start, self.block_length, owned, size, self.max_model_len)
        self.input_buffers.seq_lens[:count] = seq_lens.clamp(min=self.block_length)
        mappings = mapping.view(1, -1)
        metadata = build_attn_metadata(
            attn_groups=self.attn_groups,
            num_reqs=count,
            num_tokens=count * self.block_length,
            query_start_loc_gpu=self.query_start_loc[: count + 1],
            query_start_loc_cpu=self.query_start_loc_cpu[: count + 1],
            max_query_len=self.block_length,
            seq_lens=self.input_buffers.seq_lens[:count],
            max_seq_len=min(int(bound.max()), self.max_model_len),
            seq_lens_cpu_upper_bound=bound.clamp(max=self.max_model_len),
            block_tables=[table],
            slot_mappings=mappings,
            kv_cache_config=self.kv_cache_config,
            causal=kernel_causal(Block(self.block_length)),
            positions=self.input_buffers.positions[: count * self.block_length],
            is_prefilling=self.draft_is_prefilling[:count],
        )
        return metadata, build_slot_mappings_by_layer(mappings, self.kv_cache_config)

    def _draft(
        self,
        starts: torch.Tensor,  # [R]
        rows: slice,
        metadata: dict[str, Any] | None,
        mappings: dict[str, torch.Tensor] | None,
    ) -> torch.Tensor:  # [R, K] int64
        """One pass: the argmax of every masked row, or a draw where draft logits are kept."""
        count = len(starts)
        logits = self._logits(count, metadata, mappings)  # [R * K, V]
        logits[:, self.mask_token_id] = float("-inf")
        if self.draft_logits is None:
            return logits.argmax(dim=-1).view(count, -1)
        drafts = gumbel_sample(
            logits,
            self.idx_mapping[rows].repeat_interleave(self.num_speculative_steps),
            self.temperature,
            self.seeds,
            (starts[:, None] + self.steps - 1).flatten(),  # draws are keyed by the position before the token
            apply_temperature=True,
            is_drafting=True,
            logits_cache=self.draft_logits,
            logits_cache_col=(self.steps - 1).to(torch.int32).repeat(count),
            use_fp64=self.use_fp64_gumbel,
        )
        return drafts.view(count, -1)

    def _draft_until_sure(
        self,
        masked: torch.Tensor,  # [R, K] bool, positions that will be verified; changed
        metadata: dict[str, Any] | None,
        mappings: dict[str, torch.Tensor] | None,
    ) -> torch.Tensor:  # [R, K] int64
        """Passes until no position is masked, K at most; what a pass is sure of, the next one sees."""
        count = len(masked)
        block = self.input_buffers.input_ids[: count * self.block_length].view(count, -1)[:, 1:]
        for _ in range(self.num_speculative_steps):
            logits = self._logits(count, metadata, mappings).view(count, self.num_speculative_steps, -1)
            total = logits.float().logsumexp(dim=-1)  # the mask token keeps its share of the softmax
            logits[..., self.mask_token_id] = float("-inf")
            best, candidates = logits.max(dim=-1)
            decided = commit((best.float() - total).exp(), masked, self.threshold)
            block.copy_(torch.where(decided, candidates.int(), block))
            masked &= ~decided
            if not masked.any():  # the one look at the device a pass
                break
        return block.long()

    def _logits(
        self, count: int, metadata: dict[str, Any] | None, mappings: dict[str, torch.Tensor] | None
    ) -> torch.Tensor:  # [R * K, V]
        """Logits of the masked rows: unshifted, row i predicts token i."""
        hidden = self._forward(count * self.block_length, metadata, mappings)
        return self.model.compute_logits(hidden.view(count, self.block_length, -1)[:, 1:].flatten(0, 1))

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
            return self.model(
                input_ids=self.input_buffers.input_ids[:tokens], positions=self.input_buffers.positions[:tokens]
            )
