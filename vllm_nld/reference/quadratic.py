"""Quadratic self-speculation: one forward per round verifies a block and drafts the next for every acceptance length.

The forward holds B groups [draft i, B masks], B·(B + 1) tokens. The drafts are the AR pathway over the block; the masks
of group i draft the continuation in case exactly the drafts up to i are accepted. NFE = 1 + rounds. The draft adapter
is off, because one forward serves both pathways.
"""

import torch

from vllm_nld.reference import masks
from vllm_nld.reference.generation import Output
from vllm_nld.reference.model import KVCache, ReferenceModel
from vllm_nld.reference.sampling import draw, softmax, target_probs, without
from vllm_nld.reference.settings import Settings
from vllm_nld.reference.verify import accept


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


def first_drafts(
    model: ReferenceModel, cache: KVCache, prompt: list[int], settings: Settings, output: Output
) -> list[int]:
    """Prefill and draft in one forward: emit the first token, return it and B - 1 drafts. Only the prompt is cached."""
    length, k, mask_id = len(prompt), settings.block_length, model.config.mask_token_id
    tokens = torch.tensor([prompt + [mask_id] * k])
    hidden = model(tokens, cache, mask=masks.prompt_with_masks(length, k))[0, length - 1 :]
    cache.truncate(length)
    logits = model.logits(hidden)  # [1 + B, V]: the prompt's last row, the masks
    predictions = without(logits[1:], mask_id)
    forced = output.forced
    probs = mixed_probs(logits[0], predictions[0], settings)
    output.emit(int(draw(probs, settings.generator)) if forced is None else forced)
    output.nfe += 1
    return [output.tokens[-1], *predictions[1:].argmax(-1).tolist()]


def decode_quadratic(model: ReferenceModel, prompt: list[int], settings: Settings, output: Output) -> None:
    """Run the loop until `output` is done. With λ = 1 tokens follow the AR distribution; greedy output equals AR's.

    The round that finds the bonus token emits it, and it becomes draft 0 of the next round. Near the end of the context
    the masks' positions run up to B past it; their KV is never kept.
    """
    cache, k, mask_id = KVCache(model.config.num_hidden_layers), settings.block_length, model.config.mask_token_id
    drafts = first_drafts(model, cache, prompt, settings, output)
    positions = (torch.arange(k)[:, None] + torch.arange(k + 1)).flatten()  # group i: i … i + k
    while not output.done:
        start = cache.length
        tokens = torch.tensor([[token for draft in drafts for token in [draft] + [mask_id] * k]])  # [1, B · (B + 1)]
        mask = masks.quadratic_groups(k, cached=start)
        hidden = model(tokens, cache, positions=start + positions, mask=mask)[0]
        logits = model.logits(hidden).unflatten(0, (k, k + 1))  # [B, 1 + B, V]
        predictions = without(logits[:, 1:], mask_id)  # [B, B, V]
        output.nfe += 1
        probs = mixed_probs(logits[:, 0], predictions[:, 0], settings)
        accepted = accept(probs, drafts[1:], output, settings.generator)
        kept = start + torch.arange(accepted) * (k + 1)
        cache.keep(torch.cat([torch.arange(start), kept]))
        drafts = [output.tokens[-1], *predictions[accepted - 1, 1:].argmax(-1).tolist()]
