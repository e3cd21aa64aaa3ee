"""The worker's view of each request's decoding, and the samplers that act on it: the model's ModelState.

vLLM makes one when it has loaded the model, tells it of every request that takes a slot, and asks it for samplers.
"""

from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.sample.sampler import Sampler

from spec_worker.accept import AcceptingSampler, BlockTaker
from spec_worker.slots import Slots
from vllm_nld.serving.modes import Served
from vllm_nld.serving.speculation import drafts_for_itself


class NldModelState(DefaultModelState):
    """vLLM's own, and the decoding parameters of every slot."""

    def __init__(
        self, vllm_config: VllmConfig, model: nn.Module, encoder_cache: EncoderCache | None, device: torch.device
    ) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self.served = Served.of(vllm_config)
        self.slots = Slots(self.max_num_reqs, self.served.default, self.served.block_length - 1, device)
        self.sampler: Sampler  # vLLM hands it over once the model is loaded

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        super().add_request(req_index, new_req_data)
        params = new_req_data.sampling_params
        if params is not None:
            resumed = len(new_req_data.prefill_token_ids or ()) > new_req_data.prompt_len
            self.slots.assign(req_index, self.served.read(params.extra_args), params, resumed)

    def apply_staged_writes(self) -> None:
        super().apply_staged_writes()
        self.slots.apply_staged_writes()

    def custom_sampler(self, sampler: Sampler) -> tuple[Any, Any] | None:
        """vLLM's samplers, the rejection sampler with the accept policy of every mode."""
        self.sampler = sampler
        if not drafts_for_itself(self.vllm_config):
            return None
        speculative = self.vllm_config.speculative_config
        taker = BlockTaker.over(sampler, self.slots)
        return taker, AcceptingSampler(taker, speculative, self.device)
