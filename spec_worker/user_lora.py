"""User LoRA in draft passes: each row of a block runs with its own request's adapter, as the verifying rows do.

vLLM maps tokens to adapters once a step, for the target forward; a draft pass has other tokens. The next target step
sets its own mapping again.
"""

from collections.abc import Sequence

from torch import nn
from vllm.lora.layers import LoRAMapping

from vllm_nld.compat.lora import active_loras

NO_LORA = 0  # vLLM's id of "no adapter"


def user_loras(model: nn.Module) -> Sequence[int] | None:
    """The adapter id of each request of the last target step; None where user LoRA is off."""
    manager = getattr(model, "lora_manager", None)
    return None if manager is None else active_loras(manager)


def map_blocks(model: nn.Module, loras: Sequence[int], lengths: Sequence[int]) -> None:
    """Give every row of each request's block that request's adapter."""
    rows = tuple(lora for lora, length in zip(loras, lengths, strict=True) for _ in range(length))
    model.lora_manager.set_adapter_mapping(LoRAMapping(rows, tuple(loras), is_prefill=True))  # type: ignore[operator, union-attr]
