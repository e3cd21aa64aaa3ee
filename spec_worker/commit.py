"""What a pass decides: how sure the model is of a candidate, which positions are committed, when a block is done.

Letters in shapes: R requests, K drafts a request, M masked positions of all requests, V vocabulary, S stop tokens.
"""

import torch


def probability(
    logits: torch.Tensor,  # [M, V]
    candidates: torch.Tensor,  # [M] int64
) -> torch.Tensor:  # [M] float64
    """The softmax probability of each candidate, as 1 / (1 + odds against it): precise near 1 in any dtype."""
    index = candidates.unsqueeze(1)
    odds = (logits.float() - logits.gather(1, index).float()).exp_()
    return 1 / (1 + odds.scatter_(1, index, 0).sum(dim=1, dtype=torch.float64))


def commit(
    confidence: torch.Tensor,  # [R, K] float in [0, 1]
    masked: torch.Tensor,  # [R, K] bool, the positions still undecided
    threshold: torch.Tensor,  # [R] float in [0, 1]
) -> torch.Tensor:  # [R, K] bool, the positions decided now
    """Each request's most confident masked position, and every one whose confidence reaches its threshold."""
    confidence = confidence.masked_fill(~masked, -1.0)
    best = torch.zeros_like(masked).scatter_(1, confidence.argmax(dim=1, keepdim=True), True)
    return masked & (best | (confidence >= threshold[:, None]))


def stopped(
    tokens: torch.Tensor,  # [R, K] int64
    masked: torch.Tensor,  # [R, K] bool
    stop_ids: torch.Tensor,  # [R, S] int64, -1 where there is none
) -> torch.Tensor:  # [R] bool
    """Whether a stop token was committed with no mask before it: what follows it will never be read."""
    stop = (tokens[:, :, None] == stop_ids[:, None, :]).any(dim=2)
    return (stop & (masked.int().cumsum(dim=1) == 0)).any(dim=1)
