"""vLLM's Mistral decoder layer, and its twin for draft passes.

If the server drafts, attention runs on the backend registered as CUSTOM (`attention_backend`), over the kernel that
vLLM chose for the platform; otherwise directly on that kernel, as in stock vLLM. The twin shares every module and
weight with the layer, except that it has the draft adapter beside its projections.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.llama import LlamaDecoderLayer
from vllm.model_executor.models.mistral import MistralAttention, MistralDecoderLayer
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from vllm_nld.model.draft_lora import DraftLora
from vllm_nld.serving.settings import Settings
from vllm_nld.serving.speculation import drafts_for_itself


class AdaptedProjection(nn.Module):
    """A projection with the draft adapter beside it. `base` may be quantized, or wrapped for user LoRA."""

    def __init__(self, base: Any, lora: DraftLora) -> None:
        super().__init__()
        linear = getattr(base, "base_layer", base)  # inside user LoRA's wrapper
        self.reduce = linear.tp_size > 1 and getattr(linear, "reduce_results", False)  # row-parallel ones
        self.base = unreduced(base) if self.reduce else base  # the adapter's output is added before the all-reduce
        self.lora = lora

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:  # [T, in] -> [T, out]
        out = self.base(x)[0] + self.lora(x)
        return (tensor_model_parallel_all_reduce(out) if self.reduce else out), None


def unreduced(projection: Any) -> Any:
    """A twin of the projection without the all-reduce over tensor-parallel ranks."""
    twin = shallow_copy(projection)
    if hasattr(twin, "base_layer"):
        twin.base_layer = unreduced(twin.base_layer)
    else:
        twin.reduce_results = False
    return twin


def shallow_copy(module: Any) -> Any:
    """A module with the same submodules, parameters and buffers; its submodules can be replaced independently."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def with_adapters(module: nn.Module, loras: Mapping[str, DraftLora]) -> nn.Module:
    """A twin of an attention or MLP, with the adapters of its projections."""
    twin: nn.Module = shallow_copy(module)
    for name, lora in loras.items():
        if hasattr(module, name):
            setattr(twin, name, AdaptedProjection(getattr(module, name), lora))
    return twin


class NldAttention(MistralAttention):
    """Attention of both the AR and the diffusion pathway."""

    attn: Any
    o_proj: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        chosen = self.attn
        config = get_current_vllm_config()
        if not drafts_for_itself(config):
            return
        del config.compilation_config.static_forward_context[chosen.layer_name]
        self.attn = Attention(
            self.num_heads,
            self.head_dim,
            self.scaling,
            num_kv_heads=self.num_kv_heads,
            cache_config=kwargs.get("cache_config"),
            quant_config=kwargs.get("quant_config"),
            prefix=chosen.layer_name,
            attn_backend=AttentionBackendEnum.CUSTOM.get_class().over(
                chosen.attn_backend, Settings.of(config).mask_kernel
            ),
        )


class NldDecoderLayer(MistralDecoderLayer):
    """Mistral's layer with NldAttention."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "", config: Any = None) -> None:
        LlamaDecoderLayer.__init__(self, vllm_config, prefix=prefix, config=config, attn_layer_type=NldAttention)
        self.layer_idx = int(prefix.split(".")[-1])
        self.ada_rms_norm_t_cond = None  # the NLD family has no time conditioning

    def with_draft_loras(self, loras: Mapping[str, DraftLora]) -> "NldDecoderLayer":
        """The layer's twin with draft adapters beside these projections."""
        twin: NldDecoderLayer = shallow_copy(self)
        twin.self_attn, twin.mlp = with_adapters(self.self_attn, loras), with_adapters(self.mlp, loras)
        return twin
