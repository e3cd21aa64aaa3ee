"""CUDA graphs of the draft pass: one graph per block length and padded number of whole blocks.

A graph replays one shape, so it fits a pass whose blocks all have one length: the server's, or one of those that mode
`auto` chooses from (`compat.speculation.capture_chosen_lengths`). The number of blocks is padded to the next captured
one. Shapes of up to `--max-cudagraph-capture-size` tokens are captured. All other passes run without graphs: other
lengths, blocks of several lengths, more blocks than were captured, and user LoRA, because vLLM keeps part of its
mapping of rows to adapters on the CPU.

The same graph serves passes with the draft adapter and without, because the adapter's switch is a number on the device.
Committing tokens is not part of the graph.

The target's piecewise graphs can't be used: they read the target's input buffers, which hold the step's own tokens
until all blocks are filled. Ranks don't have to agree on a shape: the family is dense, so vLLM runs data-parallel
replicas as separate engines, and the ranks of a replica see the same blocks.
"""

from collections.abc import Callable
from typing import Any

import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.logger import init_logger
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.attn_utils import AttentionCGSupportInfo
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.spec_decode.dflash.cudagraph import DFlashCudaGraphManager

from attention_backend.masks import Block, kernel_causal
from spec_worker.blocks import Layout
from spec_worker.inputs import Inputs

logger = init_logger("vllm.plugins.nld")


def graph_mode(target: CUDAGraphMode, attention: AttentionCGSupportInfo, user_lora: bool) -> CUDAGraphMode:
    """Full graphs if the target decodes in full graphs and the attention backend supports them; else no graphs."""
    if target.decode_mode() != CUDAGraphMode.FULL:
        return CUDAGraphMode.NONE
    if attention.min_cg_support.value < AttentionCGSupport.UNIFORM_BATCH.value:
        logger.warning("Draft passes run without CUDA graphs: %s does not support them.", attention.min_cg_attn_backend)
        return CUDAGraphMode.NONE
    if user_lora:
        logger.info("Draft passes run without CUDA graphs because of --enable-lora.")
        return CUDAGraphMode.NONE
    return CUDAGraphMode.FULL_DECODE_ONLY


class DraftGraphs(DFlashCudaGraphManager):
    """vLLM's graph manager for block drafters. A graph's output is its hidden states."""

    hidden_states: torch.Tensor | None = None  # [T, hidden] for the largest graph

    def shape(self, layout: Layout) -> BatchExecutionDescriptor:
        """How to run a pass: the smallest graph that has room for it, or none."""
        return self.dispatch(len(layout.lengths), layout.tokens, uniform_token_count=layout.uniform, num_active_loras=0)

    def record(
        self,
        forward: Callable[[int, Any, Any], torch.Tensor],  # (tokens, metadata, slot mappings) -> [tokens, hidden]
        inputs: Inputs,
        attn_groups: Any,
        kv_cache_config: KVCacheConfig,
    ) -> None:
        """Capture the forward in every shape, largest first."""

        def keep(requests: int, tokens: int, metadata: Any, mappings: Any, *_: Any) -> None:
            hidden = forward(tokens, metadata, mappings)
            if self.hidden_states is None:  # in the first warm-up, before anything is captured
                self.hidden_states = torch.empty_like(hidden)
            self.hidden_states[:tokens] = hidden

        self.capture(
            keep,
            inputs.buffers,
            inputs,
            attn_groups,
            kv_cache_config,
            inputs.max_model_len,
            causal=kernel_causal(Block(self.decode_query_len)),
            prepare_forward=lambda requests, metadata: None,  # metadata is rebuilt before each replay
            progress_bar_desc="Capturing draft CUDA graphs",
        )

    def run_fullgraph(self, desc: BatchExecutionDescriptor) -> torch.Tensor:  # [tokens of desc, hidden]
        """Replay a graph. The next replay overwrites the result."""
        super().run_fullgraph(desc)
        assert self.hidden_states is not None, "a graph was captured"
        return self.hidden_states[: desc.num_tokens]
