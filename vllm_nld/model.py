"""The NLD model in vLLM: vLLM's own Mistral layers with the released checkpoints' tensor names.

The family is Mistral-shaped (YaRN, llama-4 query scale, explicit head size), so tensor and pipeline parallelism,
quantisation, torch.compile and user LoRA come with vLLM's layers. This module adds the names and a check that every
tensor of the checkpoint was asked for, present and of the right shape.
"""

import contextlib
import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.llama import LlamaModel
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper

from vllm_nld.adapter import Adapter
from vllm_nld.checkpoint import TensorCheck, canonical_name
from vllm_nld.draft_lora import DraftAdapter
from vllm_nld.layers import NldDecoderLayer

STATE_MODULE = "spec_worker.state"


class NemotronLabsDiffusionModel(MistralForCausalLM):
    """Serves both supported architectures, in the released layout or converted to `language_model.*` names."""

    hf_to_vllm_mapper = LlamaModel.hf_to_vllm_mapper | WeightsMapper(
        orig_to_new_prefix={"language_model.": "", "encoder.": "model.", "diffusion_head.": "lm_head."}
    )

    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", layer_type: type[NldDecoderLayer] = NldDecoderLayer
    ) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)
        self.checkpoint = Path(vllm_config.model_config.model)
        self.quantized = vllm_config.model_config.quantization is not None
        self.draft_adapter: DraftAdapter | None = None

    @staticmethod
    def get_model_state_cls() -> type:
        """vLLM asks for the worker's per-request state."""
        return importlib.import_module(STATE_MODULE).NldModelState

    def attach(self, adapter: Adapter, dtype: torch.dtype) -> None:
        """Put a draft adapter beside every o_proj, switched off."""
        layers: Any = self.model.layers
        self.draft_adapter = DraftAdapter(adapter, next(self.parameters()).device, dtype)
        for index, layer in enumerate(layers):
            layer.self_attn.add_draft_lora(self.draft_adapter.layer(index))

    def drafting(self) -> contextlib.AbstractContextManager[None]:
        """Around a draft pass: the diffusion pathway, with the draft adapter if there is one."""
        return contextlib.nullcontext() if self.draft_adapter is None else self.draft_adapter.on()

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load every tensor; raises CheckpointError for a missing, unknown or misshapen one."""
        names = self.hf_to_vllm_mapper.get_rename_mapper()  # LlamaModel stacks q, k, v and gate, up itself
        return AutoWeightsLoader(self).load_weights(self._checked(weights), mapper=names)

    def _checked(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Pass the weights on one by one, each compared with the config first.

        A loader that walks subfolders also yields the draft adapter's tensors (`base_model.*`); they are not the
        model's.
        """
        check = TensorCheck(self.config, self.checkpoint, self.quantized)
        for name, tensor in weights:
            if not name.startswith("base_model."):
                check.see(canonical_name(name), tuple(tensor.shape))
                yield name, tensor
        check.finish()
