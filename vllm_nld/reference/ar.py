"""Autoregressive decoding: one causal forward per token. NFE = output tokens; the prefill yields the first one."""

import torch

from vllm_nld.reference.generation import Output
from vllm_nld.reference.model import KVCache, ReferenceModel
from vllm_nld.reference.sampling import pick
from vllm_nld.reference.settings import Settings


def next_token(
    model: ReferenceModel,
    cache: KVCache,
    tokens: list[int],  # the T tokens after the cached ones
    settings: Settings,
    forced: int | None = None,
) -> int:
    """Add the tokens to the cache in one causal forward and return the next token: `forced` if given, else a pick."""
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
