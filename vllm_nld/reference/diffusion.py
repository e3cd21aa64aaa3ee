"""Block diffusion with a causal context: denoise a block, then write it to the cache with one causal forward.

NFE = denoising forwards + 1 per block; the prefill is not counted. A block of B tokens takes at most B forwards.
"""

from vllm_nld.reference.ar import next_token
from vllm_nld.reference.draft import fill
from vllm_nld.reference.generation import Output
from vllm_nld.reference.model import KVCache, ReferenceModel
from vllm_nld.reference.settings import Settings


def keep(tokens: list[int], output: Output) -> list[int]:
    """Emit denoised tokens until the output is done or a different token is forced; return the emitted ones."""
    for count, token in enumerate(tokens):
        if output.done or output.forced not in (None, token):
            return tokens[:count]
        output.emit(token)
    return tokens


def decode_diffusion(model: ReferenceModel, prompt: list[int], settings: Settings, output: Output) -> None:
    """Run the loop until `output` is done. The last row of each causal forward gives the next block's anchor."""
    cache = KVCache(model.config.num_hidden_layers)
    anchor = output.emit(next_token(model, cache, prompt, settings, output.forced))
    while not output.done:
        tokens, passes = fill(
            model,
            cache,
            anchor,
            block_length=min(settings.block_length, model.config.max_position_embeddings - cache.length),
            threshold=settings.threshold,
            temperature=settings.temperature,
            generator=settings.generator,
            stop_ids=output.stop_ids,
        )
        output.start_round()
        block = [anchor, *keep(tokens, output)]
        anchor = next_token(model, cache, block, settings, output.forced)
        output.nfe += passes + 1
        if not output.done:
            output.emit(anchor)
