"""What a draft pass runs where there is a draft adapter: the target's layers, with the adapter beside each o_proj.

It is compiled, and captured in CUDA graphs, apart from the target. So the forwards that verify, and those of requests
that draft nothing, carry no adapter, while module for module and weight for weight it is the same model.
"""

import torch
from torch import nn
from vllm.compilation.backends import set_model_tag
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.models.mistral import MistralModel

from vllm_nld.model.draft_lora import DraftAdapter


@support_torch_compile
class DraftPathway(MistralModel):
    """The layers' twins."""

    def __init__(self, *, vllm_config: VllmConfig, target: MistralModel, adapter: DraftAdapter) -> None:
        nn.Module.__init__(self)  # no layers of its own
        self.config, self.quant_config = target.config, target.quant_config
        self.embed_tokens, self.norm = target.embed_tokens, target.norm
        self.start_layer, self.end_layer = target.start_layer, target.end_layer
        twins = [layer.with_draft_lora(adapter.layer(index)) for index, layer in enumerate(target.layers)]
        self.layers = nn.ModuleList(twins)

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # [T], [T] -> [T, hidden]
        return super().forward(input_ids, positions, None)

    @classmethod
    def beside(cls, target: MistralModel, adapter: DraftAdapter) -> "DraftPathway":
        """Where vLLM loads the model. What torch.compile says and keeps of it goes by the name draft_pathway."""
        with set_model_tag("draft_pathway"):
            return cls(vllm_config=target.vllm_config, target=target, adapter=adapter)
