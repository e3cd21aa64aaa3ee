"""CUDA graphs of the draft pass: the forward over whole blocks, captured once a padded number of them.

A graph replays one shape, so it serves a pass whose blocks are all as long as the server's block, padded to the next
captured number of blocks; up to `--max-cudagraph-capture-size` tokens are captured. Any other pass runs as it would
without graphs: shorter blocks by request, more blocks than were captured, and user LoRA, whose mapping of rows to
adapters vLLM keeps partly on the CPU.

One graph serves passes with the draft adapter and passes without, as the adapter's switch is a number on the device.
Deciding rows stays outside.

The target's piecewise graphs are not used: they read the target's input buffers, which hold the step's own tokens until
all blocks are filled. And no shape is agreed with other ranks: the family is dense, so vLLM runs data-parallel replicas
as engines of their own, and ranks of one replica see the same blocks.
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
    """Whole passes in graphs where the target's decodes are, and where that can be right; else no graphs."""
    if target.decode_mode() != CUDAGraphMode.FULL:
        return CUDAGraphMode.NONE
    if attention.min_cg_support.value < AttentionCGSupport.UNIFORM_BATCH.value:
        logger.warning("Draft passes run without CUDA graphs: %s cannot.", attention.min_cg_attn_backend)
        return CUDAGraphMode.NONE
    if user_lora:
        logger.info("Draft passes run without CUDA graphs beside user LoRA.")
        return CUDAGraphMode.NONE
    return CUDAGraphMode.FULL_DECODE_ONLY


class DraftGraphs(DFlashCudaGraphManager):
    """vLLM's manager for a block drafter's pass; what a graph leaves behind are hidden states."""

    hidden_states: torch.Tensor | None = None  # [T, hidden], T of the largest graph

    def shape(self, layout: Layout) -> BatchExecutionDescriptor:
        """How a pass runs: by the smallest graph that has room for it, or as it is."""
        return self.dispatch(len(layout.lengths), layout.tokens, uniform_token_count=layout.uniform, num_active_loras=0)

    def record(
        self,
        forward: Callable[[int, Any, Any], torch.Tensor],  # (tokens, metadata, slot mappings) -> [tokens, hidden]
        inputs: Inputs,
        attn_groups: Any,
        kv_cache_config: KVCacheConfig,
    ) -> None:
        """Capture the forward in every shape, the largest first."""

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
            prepare_forward=lambda requests, metadata: None,  # metadata is built anew before each replay
            progress_bar_desc="Capturing draft CUDA graphs",
        )

    def run_fullgraph(self, desc: BatchExecutionDescriptor) -> torch.Tensor:  # [tokens of desc, hidden]
        """Replay; what it returns is overwritten by the next replay."""
        super().run_fullgraph(desc)
        assert self.hidden_states is not None, "a graph was captured"
        return self.hidden_states[: desc.num_tokens]
