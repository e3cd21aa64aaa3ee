"""The NLD model in vLLM: vLLM's own Mistral layers with the released checkpoints' tensor names.

The architecture is Mistral's (YaRN, llama-4 query scale, explicit head size), so tensor and pipeline parallelism,
quantization, torch.compile and user LoRA come with vLLM's layers. This module adds the names, and a check that no
tensor is missing, unknown or misshapen.
"""

import contextlib
import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.models.llama import LlamaModel
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper
from vllm.sequence import IntermediateTensors

from vllm_nld.model.adapter import Adapter
from vllm_nld.model.checkpoint import TensorCheck, canonical_name
from vllm_nld.model.draft_lora import DraftAdapter
from vllm_nld.model.draft_pathway import DraftPathway
from vllm_nld.model.layers import NldDecoderLayer

STATE_MODULE = "spec_worker.state"


@contextlib.contextmanager
def without_piecewise_graphs() -> Iterator[None]:
    """Run compiled code without its piecewise CUDA graphs: only the target's own forward has been captured."""
    context = get_forward_context()
    mode, context.cudagraph_runtime_mode = context.cudagraph_runtime_mode, CUDAGraphMode.NONE
    try:
        yield
    finally:
        context.cudagraph_runtime_mode = mode


class NemotronLabsDiffusionModel(MistralForCausalLM):
    """Both supported architectures, in the released layout or converted to `language_model.*` names."""

    hf_to_vllm_mapper = LlamaModel.hf_to_vllm_mapper | WeightsMapper(
        orig_to_new_prefix={"language_model.": "", "encoder.": "model.", "diffusion_head.": "lm_head."}
    )

    pathway: DraftPathway  # runs draft passes with the adapter; made by `attach`
    embeds_drafts = False  # draft passes give the decoder embeddings, because the target's forwards do

    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", layer_type: type[NldDecoderLayer] = NldDecoderLayer
    ) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)
        self.checkpoint = Path(vllm_config.model_config.model)
        self.quantized = vllm_config.model_config.quantization is not None
        self.draft_adapter: DraftAdapter | None = None

    @staticmethod
    def get_model_state_cls() -> type:
        """The class of the worker's per-request state, which vLLM asks for."""
        return importlib.import_module(STATE_MODULE).NldModelState

    def attach(self, adapter: Adapter, tokens: int, dtype: torch.dtype) -> None:
        """Add a draft adapter, switched off, for passes of at most so many tokens. The model itself does not change."""
        self.draft_adapter = DraftAdapter(adapter, self.config, tokens, next(self.parameters()).device, dtype)
        pathway = DraftPathway.beside(self.model, self.draft_adapter)
        self.__dict__["pathway"] = pathway  # not as a submodule, because it consists of the model's submodules

    def forward(
        self,
        input_ids: torch.Tensor | None,  # [T] int32
        positions: torch.Tensor,  # [T] int64
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:  # [T, hidden]
        """The target's forward. If some of its rows are masks, the draft adapter is part of it, on in these rows."""
        if self.draft_adapter is None or not self.draft_adapter.in_rows:
            return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds)
        with without_piecewise_graphs():
            return self.pathway(input_ids, positions, inputs_embeds)

    def draft(
        self,
        input_ids: torch.Tensor,  # [T] int32
        positions: torch.Tensor,  # [T] int64
    ) -> torch.Tensor:  # [T, hidden]
        """A draft pass: with the adapter inside `drafting()`, otherwise the target's forward.

        A compiled model takes either ids or embeddings, whichever it saw first.
        """
        ids, embeds = (None, self.embed_input_ids(input_ids)) if self.embeds_drafts else (input_ids, None)
        adapted = self.draft_adapter is not None and self.draft_adapter.is_on
        return self.pathway(ids, positions, embeds) if adapted else super().forward(ids, positions, None, embeds)

    def drafting(self) -> contextlib.AbstractContextManager[None]:
        """A context in which draft passes use the draft adapter, if there is one."""
        return contextlib.nullcontext() if self.draft_adapter is None else self.draft_adapter.on()

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load all tensors. Raises CheckpointError for a missing, unknown or misshapen one."""
        names = self.hf_to_vllm_mapper.get_rename_mapper()  # LlamaModel stacks q, k, v and gate, up itself
        return AutoWeightsLoader(self).load_weights(self._checked(weights), mapper=names)

    def _checked(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Check each tensor against the config and pass it on.

        A loader that walks subfolders also yields the draft adapter's tensors (`base_model.*`), which are skipped.
        """
        check = TensorCheck(self.config, self.checkpoint, self.quantized)
        for name, tensor in weights:
            if not name.startswith("base_model."):
                check.see(canonical_name(name), tuple(tensor.shape))
                yield name, tensor
        check.finish()
