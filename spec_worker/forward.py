"""The forward of a draft pass: bidirectional inside each block, over the whole prefix.

It runs the served model's modules on its own input buffers, in a CUDA graph if one fits.
"""

from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.forward_context import BatchDescriptor, set_forward_context
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata, build_slot_mappings_by_layer
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.input_batch import InputBuffers

from attention_backend.masks import Block, kernel_causal
from spec_worker.graphs import DraftGraphs
from spec_worker.inputs import Inputs, Pass
from spec_worker.user_lora import map_blocks, uses_lora


class DraftForward:
    """Runs passes over blocks. Before `attach`, without a KV cache, only `forward` works."""

    def __init__(self, model: nn.Module, vllm_config: VllmConfig, buffers: InputBuffers) -> None:
        self.model, self.vllm_config, self.buffers = model, vllm_config, buffers
        self.inputs: Inputs

    def attach(self, attn_groups: Any, kv_cache_config: Any, block_tables: BlockTables) -> None:
        """Use a KV cache. Raises ValueError if the model has several kinds of attention layers."""
        if len(attn_groups) != 1:
            raise ValueError(f"self-speculation needs one kind of attention layer, not {len(attn_groups)} KV groups")
        self.attn_groups, self.kv_cache_config = attn_groups, kv_cache_config
        self.max_model_len = self.vllm_config.model_config.max_model_len
        self.prefilling = torch.zeros(self.buffers.max_num_reqs, dtype=torch.bool)
        width = block_tables.input_block_tables[0].shape[1]
        self.inputs = Inputs(self.buffers, block_tables.block_sizes[0], width, self.max_model_len)

    def run(self, given: Pass, graphs: DraftGraphs) -> torch.Tensor:  # [T, hidden]
        """Run a pass."""
        if uses_lora(self.model):
            map_blocks(self.model, given.lora.tolist(), given.layout.lengths.tolist())
        shape = graphs.shape(given.layout)
        requests = shape.num_reqs or len(given.layout.lengths)
        self.inputs.fill(given, requests, shape.num_tokens)
        metadata, mappings = self.attention(given, requests, shape.num_tokens)
        if shape.cg_mode == CUDAGraphMode.FULL:
            return graphs.run_fullgraph(shape)[: given.layout.tokens]
        return self.forward(shape.num_tokens, metadata, mappings)

    def attention(self, given: Pass, requests: int, tokens: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Attention metadata and KV slots by layer, for a pass whose inputs are in the buffers."""
        longest = given.longest(requests, self.max_model_len)
        mappings = self.inputs.slots[:, :tokens]
        metadata = build_attn_metadata(
            attn_groups=self.attn_groups,
            num_reqs=requests,
            num_tokens=tokens,
            query_start_loc_gpu=self.buffers.query_start_loc[: requests + 1],
            query_start_loc_cpu=torch.from_numpy(given.layout.query_start_loc(requests)),
            max_query_len=int(given.layout.lengths.max()),
            seq_lens=self.buffers.seq_lens[:requests],
            max_seq_len=int(longest.max()),
            seq_lens_cpu_upper_bound=torch.from_numpy(longest),
            block_tables=[self.inputs.table[:requests]],
            slot_mappings=mappings,
            kv_cache_config=self.kv_cache_config,
            causal=kernel_causal(Block(given.layout.block_length)),
            positions=self.buffers.positions[:tokens],
            is_prefilling=self.prefilling[:requests],
        )
        return metadata, build_slot_mappings_by_layer(mappings, self.kv_cache_config)

    def forward(
        self, tokens: int, metadata: dict[str, Any] | None, mappings: dict[str, torch.Tensor] | None
    ) -> torch.Tensor:  # [tokens, hidden]
        """Run the model on the buffers."""
        with set_forward_context(
            metadata,
            self.vllm_config,
            num_tokens=tokens,
            cudagraph_runtime_mode=CUDAGraphMode.NONE,
            slot_mapping=mappings,
            batch_descriptor=BatchDescriptor(num_tokens=tokens),
        ):
            return self.model.draft(self.buffers.input_ids[:tokens], self.buffers.positions[:tokens])
