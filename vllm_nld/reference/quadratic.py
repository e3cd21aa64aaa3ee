"""Quadratic self-speculation: a round is one forward, which verifies a block and drafts the next one.

The forward holds the block, [last token, drafts], and groups of B masks. The block is the AR pathway; the masks of a
group draft the next block in case exactly the drafts up to the group's end are accepted. They see nothing after it, and
the draft adapter is on in their rows only.

The first drafts come from masks after the prompt.

Full form: a group for each acceptance length, B + B² rows, so the next drafts are always there. NFE = 1 + rounds. With
the adapter off this is the released algorithm.

Sparse form: groups for the likeliest acceptance lengths only. If another one occurs, a draft forward drafts as in
linear mode. NFE = 1 + rounds + draft forwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from vllm_nld.reference import masks
from vllm_nld.reference.generation import Output
from vllm_nld.reference.model import KVCache, ReferenceModel
from vllm_nld.reference.sampling import draw, softmax, target_probs, without
from vllm_nld.reference.settings import Settings
from vllm_nld.reference.verify import accept


@dataclass(frozen=True, slots=True)
class Block:
    """The last token and its drafts, each with the probability that the draft pathway gave it."""

    tokens: tuple[int, ...]
    confidence: tuple[float, ...]  # of the drafts, so one less

    @classmethod
    def of(cls, anchor: int, logits: torch.Tensor, mask_id: int) -> Self:  # logits: [drafts, V]
        """The argmax of each row. The mask token is no candidate but keeps its share of the softmax."""
        drafts = without(logits, mask_id).argmax(-1)
        confidence = softmax(logits).gather(-1, drafts[:, None])[:, 0]
        return cls((anchor, *drafts.tolist()), tuple(confidence.tolist()))


def likeliest_ends(confidence: Sequence[float], count: int) -> list[int]:
    """The `count` likeliest numbers of accepted drafts, the likeliest first; of equal ones the smaller first.

    A draft is taken to be accepted with its confidence, so exactly i are with c_1 · … · c_i · (1 - c_(i + 1)).
    """
    likely, reached = [], 1.0
    for sure in confidence:
        likely.append(reached * (1 - sure))
        reached *= sure
    likely.append(reached)
    return sorted(range(len(likely)), key=lambda end: -likely[end])[:count]


def mixed_probs(
    ar: torch.Tensor,  # [..., V] logits of the AR pathway
    diffusion: torch.Tensor,  # [..., V] logits of the diffusion pathway for the same positions, mask token at -inf
    settings: Settings,
) -> torch.Tensor:  # [..., V] float64
    """The verifier's distribution: λ · p_AR + (1 - λ) · p_diffusion, λ = verifier_mix; 1 is plain AR."""
    weight, temperature = settings.verifier_mix, settings.temperature
    if weight == 1:
        return target_probs(ar, temperature)
    # Greedy takes the argmax of the mixture, not the mixture of argmaxes.
    mixture = weight * softmax(ar, temperature or 1.0) + (1 - weight) * softmax(diffusion, temperature or 1.0)
    return mixture if temperature else target_probs(mixture, 0)


def first_block(model: ReferenceModel, cache: KVCache, prompt: list[int], settings: Settings, output: Output) -> Block:
    """Prefill and draft in one forward, and emit the first token. Only the prompt is cached."""
    length, k, mask_id = len(prompt), settings.block_length, model.config.mask_token_id
    tokens = torch.tensor([prompt + [mask_id] * k])
    lora = settings.lora and torch.arange(length + k) >= length
    hidden = model(tokens, cache, mask=masks.prompt_with_masks(length, k), lora=lora)[0, length - 1 :]
    cache.truncate(length)
    logits = model.logits(hidden)  # [1 + B, V]: the prompt's last row, the masks
    forced = output.forced
    probs = mixed_probs(logits[0], without(logits[1], mask_id), settings)
    output.emit(int(draw(probs, settings.generator)) if forced is None else forced)
    output.nfe += 1
    return Block.of(output.tokens[-1], logits[2:], mask_id)


def draft_block(model: ReferenceModel, cache: KVCache, settings: Settings, output: Output) -> Block:
    """Draft in a forward of its own, as linear mode does. The cache is left unchanged."""
    start, anchor, mask_id = cache.length, output.tokens[-1], model.config.mask_token_id
    length = min(settings.block_length, model.config.max_position_embeddings - start)
    tokens = torch.tensor([[anchor] + [mask_id] * (length - 1)])
    logits = model.logits(model(tokens, cache, causal=False, lora=settings.lora)[0, 1:])
    cache.truncate(start)
    output.nfe += 1
    return Block.of(anchor, logits, mask_id)


def verify(
    model: ReferenceModel, cache: KVCache, block: Block, ends: Sequence[int], settings: Settings, output: Output
) -> Block | None:
    """One round. Returns the next block, or None if there is no group for the acceptance length that occurred."""
    start, length, k, mask_id = cache.length, len(block.tokens), settings.block_length, model.config.mask_token_id
    tokens = torch.tensor([[*block.tokens, *[mask_id] * (k * len(ends))]])
    after = [end + 1 + torch.arange(k) for end in ends]  # the masks of a group follow its end
    positions = start + torch.cat([torch.arange(length), *after])
    lora = settings.lora and torch.arange(tokens.shape[1]) >= length
    mask = masks.quadratic_groups(length, ends, k, cached=start)
    hidden = model(tokens, cache, positions=positions, mask=mask, lora=lora)[0]
    groups = hidden[length:].unflatten(0, (len(ends), k))
    output.nfe += 1
    logits = model.logits(hidden[:length])
    same = logits if settings.verifier_mix == 1 else without(model.logits(groups[:, 0]), mask_id)
    probs = mixed_probs(logits, same, settings)
    accepted = accept(probs, block.tokens[1:], output, settings.generator)
    cache.truncate(start + accepted)
    if accepted - 1 not in ends:
        return None
    return Block.of(output.tokens[-1], model.logits(groups[list(ends).index(accepted - 1), 1:]), mask_id)


def decode_quadratic(model: ReferenceModel, prompt: list[int], settings: Settings, output: Output) -> None:
    """Run the loop until `output` is done. With λ = 1 tokens follow the AR distribution; greedy output equals AR's.

    The round that finds the bonus token emits it, and it becomes the first token of the next block. Near the end of the
    context the masks' positions run past it; their KV is never kept.
    """
    cache = KVCache(model.config.num_hidden_layers)
    sparse = 0 < settings.groups < settings.block_length
    block: Block | None = first_block(model, cache, prompt, settings, output)
    while not output.done:
        block = block or draft_block(model, cache, settings, output)
        ends = likeliest_ends(block.confidence, settings.groups) if sparse else range(len(block.tokens))
        block = verify(model, cache, block, ends, settings, output)
