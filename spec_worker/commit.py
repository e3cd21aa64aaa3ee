"""Which positions of a block are decided by a pass: the rule that drafting with a threshold repeats.

Letters in shapes: R requests, K drafts a request.
"""

import torch


def commit(
    confidence: torch.Tensor,  # [R, K] float32 in [0, 1]
    masked: torch.Tensor,  # [R, K] bool, the positions still undecided
    threshold: float,
) -> torch.Tensor:  # [R, K] bool, the positions decided now
    """Each request's most confident masked position, and every one whose confidence reaches the threshold."""
    confidence = confidence.masked_fill(~masked, -1.0)
    best = torch.zeros_like(masked).scatter_(1, confidence.argmax(dim=1, keepdim=True), True)
    return masked & (best | (confidence >= threshold))
