"""What a pass decides: how probable a candidate is, which positions are committed, and when a block is done.

Letters in shapes: R requests, K drafts per request, M masked positions of all requests, V vocabulary, S stop tokens.
"""

import torch


def probability(
    logits: torch.Tensor,  # [M, V]
    candidates: torch.Tensor,  # [M] int64
) -> torch.Tensor:  # [M] float64
    """The softmax probability of each candidate, as 1 / (1 + odds against it), which is precise near 1."""
    index = candidates.unsqueeze(1)
    odds = (logits.float() - logits.gather(1, index).float()).exp_()
    return 1 / (1 + odds.scatter_(1, index, 0).sum(dim=1, dtype=torch.float64))


def commit(
    confidence: torch.Tensor,  # [R, K] float in [0, 1]
    masked: torch.Tensor,  # [R, K] bool, the positions still undecided
    threshold: torch.Tensor,  # [R] float in [0, 1]
) -> torch.Tensor:  # [R, K] bool, the positions decided now
    """Each request's most confident masked position, and all whose confidence reaches its threshold."""
    confidence = confidence.masked_fill(~masked, -1.0)
    best = torch.zeros_like(masked).scatter_(1, confidence.argmax(dim=1, keepdim=True), True)
    return masked & (best | (confidence >= threshold[:, None]))


def stopped(
    tokens: torch.Tensor,  # [R, K] int64
    masked: torch.Tensor,  # [R, K] bool
    stop_ids: torch.Tensor,  # [R, S] int64, padded with -1
) -> torch.Tensor:  # [R] bool
    """Whether a stop token is committed and no mask precedes it, so nothing after it matters."""
    stop = (tokens[:, :, None] == stop_ids[:, None, :]).any(dim=2)
    return (stop & (masked.int().cumsum(dim=1) == 0)).any(dim=1)
