"""Checks at start-up, through the forward that drafts, that the draft adapter has an effect.

If an adapter were silently off (compiled away, its switch never set, all zeros), only the acceptance would show it.
"""

from collections.abc import Callable

import torch
from torch import nn
from vllm.logger import init_logger

logger = init_logger("vllm.plugins.nld")


@torch.inference_mode()
def check_adapter(
    model: nn.Module,
    forward: Callable[[], torch.Tensor],  # -> [B, hidden], a pass over one block of masks
) -> None:
    """Compare draft logits with and without the adapter. Raises RuntimeError if it changes nothing, or stays on."""
    if model.draft_adapter is None:
        logger.info("Draft adapter: none.")
        return
    without = model.compute_logits(forward()).clone()
    with model.drafting():
        drafting = model.compute_logits(forward()).clone()
    after = model.compute_logits(forward())
    change = (drafting - without).abs().max().item()
    path = model.draft_adapter.adapter.path
    if not change > 0:
        raise RuntimeError(
            f"the draft adapter in {path} has no effect on draft logits: its weights are zero or the "
            "compiled model leaves it out; set draft_lora to 'off' to draft without it, or try --enforce-eager"
        )
    if not torch.equal(after, without):
        raise RuntimeError(f"the draft adapter in {path} stays on after a draft pass: set draft_lora to 'off'")
    logger.info("Draft adapter: %s, on in draft passes (largest change of a draft logit: %.3g).", path, change)
