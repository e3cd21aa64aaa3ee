"""Linear self-speculation: the diffusion pathway drafts a block, the AR pathway verifies it in one causal forward.

NFE = 1 for the prefill + the draft forwards + 1 verify forward per round. At threshold 0 one forward drafts a block, so
a round costs 2. The draft adapter is on in draft forwards only.
"""

import torch

from vllm_nld.reference.ar import next_token
from vllm_nld.reference.draft import fill
from vllm_nld.reference.generation import Output
from vllm_nld.reference.model import KVCache, ReferenceModel
from vllm_nld.reference.sampling import target_probs
from vllm_nld.reference.settings import Settings
from vllm_nld.reference.verify import accept


def decode_linear(model: ReferenceModel, prompt: list[int], settings: Settings, output: Output) -> None:
    """Run the loop until `output` is done. Tokens follow the AR distribution; greedy output equals AR's exactly."""
    cache = KVCache(model.config.num_hidden_layers)
    output.emit(next_token(model, cache, prompt, settings, output.forced))
    output.nfe += 1
    while not output.done:
        start, anchor = cache.length, output.tokens[-1]
        drafts, passes = fill(
            model,
            cache,
            anchor,
            block_length=min(settings.block_length, model.config.max_position_embeddings - start),
            threshold=settings.threshold,
            lora=settings.lora,
        )
        logits = model.logits(model(torch.tensor([[anchor, *drafts]]), cache)[0])  # [B, V]
        output.nfe += passes + 1
        accepted = accept(target_probs(logits, settings.temperature), drafts, output, settings.generator)
        cache.truncate(start + accepted)
