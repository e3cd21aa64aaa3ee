"""Fill a block of masks with bidirectional forwards; diffusion decoding and linear drafting share this.

Each pass predicts every masked position at once, commits the confident ones and leaves the rest masked for the next
pass. Its KV is dropped: it is bidirectional, and the cache holds causal KV only.
"""

import torch

from vllm_nld.reference.model import KVCache, ReferenceModel
from vllm_nld.reference.sampling import pick, softmax, without


def commit(
    confidence: torch.Tensor,  # [B] float64, probability of each position's candidate
    masked: torch.Tensor,  # [B] bool, the undecided positions, at least one
    threshold: float,  # in [0, 1]
) -> torch.Tensor:  # [B] bool, the positions decided now
    """The most confident masked position, plus every masked position whose confidence reaches the threshold."""
    confidence = confidence.masked_fill(~masked, -1.0)
    decided = masked & (confidence >= threshold)
    decided[confidence.argmax()] = True
    return decided


def stop_index(
    block: torch.Tensor,  # [B] int64
    masked: torch.Tensor,  # [B] bool, the undecided positions
    stop_ids: tuple[int, ...],
) -> int | None:
    """The index of the first stop token after the anchor, or None if there is none or a mask comes before it."""
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
    """Decide the block_length - 1 tokens after `anchor`, the sequence's last token, which is not in the cache yet.

    Returns the tokens and the number of forwards, at most one per token. Filling stops early once a token in `stop_ids`
    is committed with no mask before it; the tokens then end with it. The cache is left unchanged.

    The mask token is never a candidate but keeps its share of the softmax that gives the confidence. At temperature > 0
    candidates are sampled; the confidence still comes from the softmax at temperature 1.
    """
    mask_id, start = model.config.mask_token_id, cache.length
    block = torch.tensor([anchor] + [mask_id] * (block_length - 1))
    masked = torch.ones(block_length, dtype=torch.bool)
    masked[0] = False  # tracked apart from the ids, because the anchor may itself be the mask token
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
        stop = stop_index(block, masked, stop_ids)
    return block[1 : None if stop is None else stop + 1].tolist(), passes
