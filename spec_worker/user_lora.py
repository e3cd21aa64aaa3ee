"""User LoRA in draft passes: each block runs with its request's adapter, like the rows that verify it.

vLLM maps tokens to adapters once per step, for the target forward. A draft pass has different tokens, so it sets its
own mapping; the next target forward sets its own again.
"""

from collections.abc import Sequence

from torch import nn
from vllm.lora.layers import LoRAMapping


def uses_lora(model: nn.Module) -> bool:
    """Whether the server runs with user LoRA."""
    return getattr(model, "lora_manager", None) is not None


def map_blocks(
    model: nn.Module,
    loras: Sequence[int],  # [R], the adapter id of each block's request; 0: none
    lengths: Sequence[int],  # [R]
) -> None:
    """Map every row of each block to its request's adapter."""
    rows = tuple(lora for lora, length in zip(loras, lengths, strict=True) for _ in range(length))
    model.lora_manager.set_adapter_mapping(LoRAMapping(rows, tuple(loras), is_prefill=True))  # type: ignore[operator, union-attr]
