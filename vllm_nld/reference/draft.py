"""Filling a block of masks by bidirectional forwards, as diffusion decoding and linear drafting both do.

A pass predicts every masked position at once; positions that are sure enough are committed, the others stay masked for
the next pass. A pass's KV is dropped: it is bidirectional, and the cache holds causal KV only.
"""

import torch

from vllm_nld.reference.model import KVCache, ReferenceModel
from vllm_nld.reference.sampling import pick, softmax, without


def commit(
    confidence: torch.Tensor,  # [B] float64, probability of each position's candidate
    masked: torch.Tensor,  # [B] bool, the positions still undecided, at least one
    threshold: float,  # in [0, 1]
) -> torch.Tensor:  # [B] bool, the positions decided now
    """The most confident masked position, and every one whose confidence reaches the threshold."""
    confidence = confidence.masked_fill(~masked, -1.0)
    decided = masked & (confidence >= threshold)
    decided[confidence.argmax()] = True
    return decided


def stopped(
    block: torch.Tensor,  # [B] int64
    masked: torch.Tensor,  # [B] bool
    stop_ids: tuple[int, ...],
) -> int | None:
    """The index of a stop token after the anchor with no mask before it, else None."""
    for index in range(1, len(block)):
        if masked[index]:
            return None
        if int(block[index]) in stop_ids:
            return index
    return None


def fill(
    model: ReferenceModel,
    cache: KVCache,
    anchor: int,
    *,
    block_length: int,
    threshold: float,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    lora: bool = False,
    stop_ids: tuple[int, ...] = (),
) -> tuple[list[int], int]:
    """Decide the tokens after `anchor`, the sequence's last token, which is not in the cache yet.

    Returns the B - 1 tokens and the number of forwards, at most one a token; fewer tokens where one of `stop_ids` was
    committed with no mask before it: it is then the last. The cache is left as it was.

    The mask token is never a candidate, though it keeps its share of the softmax that the confidence is read from. At
    temperature > 0 candidates are drawn, and the confidence still comes from the softmax at temperature 1.
    """
    mask_id, start = model.config.mask_token_id, cache.length
    block = torch.tensor([anchor] + [mask_id] * (block_length - 1))
    masked = torch.ones(block_length, dtype=torch.bool)
    masked[0] = False  # tracked apart from the ids: the anchor may be any token, the mask token included
    passes, stop = 0, None
    while masked.any() and stop is None:
        logits = model.logits(model(block[None], cache, causal=False, lora=lora)[0])  # [B, V]
        cache.truncate(start)
        passes += 1
        candidates = pick(without(logits, mask_id), temperature, generator)  # [B]
        confidence = softmax(logits).gather(-1, candidates[:, None])[:, 0]
        decided = commit(confidence, masked, threshold)
        block = torch.where(decided, candidates, block)
        masked &= ~decided
        stop = stopped(block, masked, stop_ids)
    return block[1 : None if stop is None else stop + 1].tolist(), passes
