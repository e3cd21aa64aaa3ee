"""The model's ModelState: each request's decoding parameters, and the samplers that use them.

vLLM creates it after loading the model, passes it every request that gets a slot, and asks it for samplers.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.sample.sampler import Sampler

from attention_backend.rows import attach
from spec_worker.accept import AcceptingSampler, ForcedBlockSampler
from spec_worker.mask_groups import MaskGroups, mask_rows, only_verified
from spec_worker.slots import NO_LORA, Slots
from spec_worker.trees import Trees
from vllm_nld.serving.decoding import Decoding
from vllm_nld.serving.requests import ServerModes
from vllm_nld.serving.speculation import drafts_for_itself


class NldModelState(DefaultModelState):
    """vLLM's ModelState, with the decoding parameters of every slot."""

    def __init__(
        self, vllm_config: VllmConfig, model: nn.Module, encoder_cache: EncoderCache | None, device: torch.device
    ) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        modes = ServerModes.of(vllm_config)
        self.default = modes.default
        self.slots = Slots(self.max_num_reqs, self.default, modes.block_length - 1, device)
        self.trees = Trees(
            self.max_num_reqs,
            max(vllm_config.num_speculative_tokens, 1),
            modes.block_length,
            self.max_num_tokens,
            getattr(vllm_config.model_config.hf_config, "mask_token_id", 0),
            self.max_model_len,
            device,
        )
        self.groups = MaskGroups(self.max_num_reqs, modes.groups, device)
        self.graphs_have_masks = modes.tree_nodes > 0 or modes.groups > 0
        self.has_groups = modes.groups > 0
        self.sampler: Sampler  # set by `custom_sampler`

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        super().add_request(req_index, new_req_data)
        params, lora = new_req_data.sampling_params, new_req_data.lora_request
        if params is not None:
            resumed = len(new_req_data.prefill_token_ids or ()) > new_req_data.prompt_len
            adapter = NO_LORA if lora is None else lora.lora_int_id
            self.trees.forget(req_index)
            self.groups.forget(req_index)
            self.slots.assign(req_index, Decoding.of(params) or self.default, params, adapter, resumed)

    def apply_staged_writes(self) -> None:
        super().apply_staged_writes()
        self.slots.apply_staged_writes()

    def prepare_attn(
        self,
        input_batch: InputBatch,
        cudagraph_mode: CUDAGraphMode,
        *args: Any,
        for_capture: bool = False,  # in a full graph
        **kwargs: Any,
    ) -> Any:
        """As vLLM's, with the mask of the step's trees and groups, whose rows get positions of their own.

        The positions are changed in place, after KV slots were computed from them: samples depend on a row's position
        as well, and a CUDA graph reads this buffer.
        """
        metadata = super().prepare_attn(input_batch, cudagraph_mode, *args, for_capture=for_capture, **kwargs)
        full = for_capture or cudagraph_mode == CUDAGraphMode.FULL
        drafts = self.groups.begin(input_batch)
        attach(metadata, self.trees.mask(input_batch, self.groups, every=full and self.graphs_have_masks))
        self._adapt(input_batch, drafts, full)
        if drafts is not None:
            only_verified(input_batch, drafts)
        return metadata

    def _adapt(self, input_batch: InputBatch, drafts: np.ndarray | None, full: bool) -> None:
        """Switch the draft adapter on in rows of masks. A full graph of a server with groups always has it inside."""
        adapter = self.model.draft_adapter
        if adapter is None:
            return
        if drafts is not None:
            adapter.by_row(mask_rows(input_batch, drafts))
        elif full and self.has_groups:
            adapter.by_row(np.zeros(0, dtype=bool))
        else:
            adapter.not_by_row()

    def custom_sampler(self, sampler: Sampler) -> tuple[Any, Any] | None:
        """Samplers that accept drafts by each request's mode; None, for vLLM's own, if the server does not draft."""
        self.sampler = sampler
        if not drafts_for_itself(self.vllm_config):
            return None
        forced = ForcedBlockSampler.over(sampler, self.slots)
        speculative = self.vllm_config.speculative_config
        return forced, AcceptingSampler(forced, self.trees, self.groups, speculative, self.device)
