"""Quick figures during training, by teacher forcing: no decoding loop, one batch a figure.

Greedy AR output equals the expected answer exactly when every teacher-forced argmax does, so exact match needs one
forward. The draft figure is the mean of 1 + leading matches over blocks at random starts: a proxy of the acceptance
length.
"""

import torch

from vllm_nld.nano.batches import IGNORED, Batch
from vllm_nld.nano.objective import clean_pass, noisy_pass
from vllm_nld.reference.model import ReferenceModel


@torch.no_grad()
def probe(model: ReferenceModel, batch: Batch, lora: bool = False) -> tuple[torch.Tensor, float]:
    """Exact match [N] bool and mean accepted tokens a block, for a batch whose blocks are all draft blocks."""
    hidden, cache = clean_pass(model, batch)
    labelled = batch.clean_labels != IGNORED
    right = (model.logits(hidden).argmax(-1) == batch.clean_labels) | ~labelled
    drafted = model.logits(noisy_pass(model, batch, cache, lora)).argmax(-1)
    match = (drafted == batch.noisy_labels) & (batch.noisy_weights == 1)
    blocks = match.view(match.shape[0], -1, batch.block_length)[:, :, 1:]
    used = batch.block_start.view(match.shape[0], -1, batch.block_length)[:, :, 0] >= 0
    leading = blocks.long().cumprod(-1).sum(-1)
    return right.all(-1), (1 + leading[used].float().mean()).item()
