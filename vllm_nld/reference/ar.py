"""Autoregressive decoding: one causal forward a token. NFE = tokens, the prefill counted for the first of them."""

import torch

from vllm_nld.reference.generation import Output
from vllm_nld.reference.model import KVCache, ReferenceModel
from vllm_nld.reference.sampling import pick
from vllm_nld.reference.settings import Settings


def next_token(
    model: ReferenceModel,
    cache: KVCache,
    tokens: list[int],  # T tokens that follow the cache
    settings: Settings,
    forced: int | None = None,
) -> int:
    """Append tokens to the cache by one causal forward and choose the token after them: `forced` if that is given."""
    hidden = model(torch.tensor([tokens]), cache)  # [1, T, hidden]
    if forced is not None:
        return forced
    return int(pick(model.logits(hidden[0, -1]), settings.temperature, settings.generator))


def decode_ar(model: ReferenceModel, prompt: list[int], settings: Settings, output: Output) -> None:
    """Run the loop until `output` is done."""
    cache = KVCache(model.config.num_hidden_layers)
    tokens = prompt
    while not output.done:
        tokens = [output.emit(next_token(model, cache, tokens, settings, output.forced))]
        output.nfe += 1
