"""The joint objective: next-token loss on the clean copy, denoising loss on the noisy copy, one set of weights.

The clean copy is causal. A noisy row of block b sees the clean tokens before block b and all noisy rows of block b,
so one pass trains every block of an answer at once (block diffusion, Arriola et al. 2025, section 3; the released
models' training mask). Clean rows never see noisy ones, hence the clean copy runs first and the noisy copy reads its
keys and values, which is also how the draft adapter can be on for the noisy rows only.

    ar, diffusion = losses(model, batch)
"""

from dataclasses import replace

import torch
import torch.nn.functional as F

from vllm_nld.nano.batches import IGNORED, Batch
from vllm_nld.reference.model import KVCache, ReferenceModel


def noisy_mask(
    block_start: torch.Tensor,  # [N, A] int64, -1 for padding
    clean_length: int,
) -> torch.Tensor:  # [N, 1, A, L + A] bool, True where a noisy row may look
    """Block-causal to the clean copy, bidirectional inside the own block."""
    clean = torch.arange(clean_length) < block_start.unsqueeze(-1)
    own = block_start.unsqueeze(-1) == block_start.unsqueeze(-2)
    return torch.cat([clean, own], dim=-1).unsqueeze(1)


def row_losses(model: ReferenceModel, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the labelled rows, [n] float32; only their logits are computed."""
    chosen = labels != IGNORED
    return F.cross_entropy(model.logits(hidden[chosen]).float(), labels[chosen], reduction="none")


def clean_pass(model: ReferenceModel, batch: Batch) -> tuple[torch.Tensor, KVCache]:
    """The causal forward over the clean copy: hidden [N, L, hidden], and its keys and values."""
    cache = KVCache(model.config.num_hidden_layers)
    length = batch.clean.shape[1]
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    return model(batch.clean, cache, positions=batch.offset.unsqueeze(-1) + torch.arange(length), mask=mask), cache


def noisy_pass(model: ReferenceModel, batch: Batch, cache: KVCache, lora: bool = False) -> torch.Tensor:
    """The block-diffusion forward over the noisy copy: hidden [N, A, hidden]."""
    mask = noisy_mask(batch.block_start, batch.clean.shape[1])
    return model(batch.noisy, cache, positions=batch.offset.unsqueeze(-1) + batch.noisy_index, mask=mask, lora=lora)


@torch.no_grad()
def reveal(model: ReferenceModel, batch: Batch, cache: KVCache, threshold: float = 0.9, share: float = 0.5) -> Batch:
    """The batch with masked tokens shown, in a share of its blocks, if the model is right and sure of them.

    Denoising commits the easy tokens first, so most of its passes see a block of which only the hard ones are masked.
    Random masks hardly ever make such blocks.
    """
    length = cache.length
    probability, token = model.logits(noisy_pass(model, batch, cache)).softmax(-1).max(-1)  # [N, A] each
    cache.truncate(length)
    chosen = torch.rand(batch.clean.shape[0], batch.noisy.shape[1] // batch.block_length) < share
    shown = chosen.repeat_interleave(batch.block_length, dim=1)
    shown &= (token == batch.noisy_labels) & (probability >= threshold)
    return replace(
        batch,
        noisy=torch.where(shown, token, batch.noisy),
        noisy_labels=batch.noisy_labels.masked_fill(shown, IGNORED),
    )


def losses(
    model: ReferenceModel, batch: Batch, denoise: bool = True, revealing: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean AR loss and weighted mean denoising loss (0 if `denoise` is false).

    revealing: in half of the blocks, denoise what the model is not sure of yet (see `reveal`).
    """
    hidden, cache = clean_pass(model, batch)
    ar = row_losses(model, hidden, batch.clean_labels).mean()
    if not denoise:
        return ar, torch.zeros(())
    if revealing:
        batch = reveal(model, batch, cache)
    weights = batch.noisy_weights[batch.noisy_labels != IGNORED]
    diffusion = row_losses(model, noisy_pass(model, batch, cache), batch.noisy_labels)
    return ar, (diffusion * weights).sum() / weights.sum().clamp(min=1)


def draft_loss(model: ReferenceModel, batch: Batch, decay: float = 12.0) -> torch.Tensor:
    """The adapter's loss: only noisy rows use it, and row i of a block counts exp(-i / decay), as drafts are accepted
    from the left."""
    with torch.no_grad():
        _, cache = clean_pass(model, batch)
    chosen = batch.noisy_labels != IGNORED
    depth = (batch.noisy_index - batch.block_start).float()
    weights = (batch.noisy_weights * torch.exp(-depth / decay))[chosen]
    rows = row_losses(model, noisy_pass(model, batch, cache, lora=True), batch.noisy_labels)
    return (rows * weights).sum() / weights.sum()
