"""Which LoRA adapters are active, as vLLM's manager was last told."""

from typing import Any


def active_loras(manager: Any) -> tuple[int, ...]:
    """The adapter id of each request. A LoRAModelManager keeps them privately and offers no way to read them."""
    mapping = manager._last_mapping
    return () if mapping is None else mapping.prompt_mapping
