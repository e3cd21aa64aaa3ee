"""The draft adapter must have an effect: asked once at start-up, through the very forward that drafts.

An adapter that is silently off (compiled away, its switch never set, all zeros) shows in nothing but the acceptance.
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
    """Compare draft logits with and without the adapter. Raises RuntimeError where it changes nothing, or stays on."""
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
            "compiled model leaves it out; serve with draft_lora 'off' to do without, or with --enforce-eager"
        )
    if not torch.equal(after, without):
        raise RuntimeError(f"the draft adapter in {path} stays on after a draft pass: serve with draft_lora 'off'")
    logger.info("Draft adapter: %s, on in draft passes (largest change of a logit: %.3g).", path, change)
