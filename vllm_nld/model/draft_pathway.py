"""The model of draft passes with a draft adapter: the target's layers, with the adapter beside their projections.

It shares every module and weight with the target, but is compiled and captured in CUDA graphs separately. So verifying
forwards, and those of requests that don't draft, contain no adapter.
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
    """The target's layers, each with its draft adapter."""

    def __init__(self, *, vllm_config: VllmConfig, target: MistralModel, adapter: DraftAdapter) -> None:
        nn.Module.__init__(self)  # it has no layers of its own
        self.config, self.quant_config = target.config, target.quant_config
        self.embed_tokens, self.norm = target.embed_tokens, target.norm
        self.start_layer, self.end_layer = target.start_layer, target.end_layer
        twins = [layer.with_draft_loras(adapter.layer(index)) for index, layer in enumerate(target.layers)]
        self.layers = nn.ModuleList(twins)

    def forward(  # type: ignore[override]  # without pipeline stages
        self,
        input_ids: torch.Tensor | None,  # [T]
        positions: torch.Tensor,  # [T]
        inputs_embeds: torch.Tensor | None = None,  # [T, hidden], in place of ids
    ) -> torch.Tensor:  # [T, hidden]
        return super().forward(input_ids, positions, None, inputs_embeds)

    @classmethod
    def beside(cls, target: MistralModel, adapter: DraftAdapter) -> "DraftPathway":
        """Build it while vLLM loads the model. In torch.compile's logs and cache it is called draft_pathway."""
        with set_model_tag("draft_pathway"):
            return cls(vllm_config=target.vllm_config, target=target, adapter=adapter)
