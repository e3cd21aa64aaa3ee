"""`generate`, the entry point to the four decoding loops."""

from collections.abc import Sequence
from typing import Literal

import torch

from vllm_nld.reference.ar import decode_ar
from vllm_nld.reference.diffusion import decode_diffusion
from vllm_nld.reference.generation import Generation, Output
from vllm_nld.reference.linear import decode_linear
from vllm_nld.reference.model import ReferenceModel
from vllm_nld.reference.quadratic import decode_quadratic
from vllm_nld.reference.settings import DEFAULT_THRESHOLD, MODES, Settings, check_request
from vllm_nld.reference.thinking import Thinking
from vllm_nld.reference.tree import decode_tree

Mode = Literal["ar", "diffusion", "linear", "quadratic"]
__all__ = ["MODES", "Mode", "generate"]

LOOPS = {"ar": decode_ar, "diffusion": decode_diffusion, "linear": decode_linear, "quadratic": decode_quadratic}


def new_generator(seed: int | None) -> torch.Generator:
    """A private generator, so that torch's global one is left alone; seeded by the system if seed is None."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


@torch.no_grad()
def generate(
    model: ReferenceModel,
    prompt: Sequence[int],
    *,
    mode: Mode,
    max_new_tokens: int,
    block_length: int | None = None,
    threshold: float | None = None,
    temperature: float = 0.0,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    eos_token_ids: Sequence[int] | None = None,
    ignore_eos: bool = False,
    lora: bool = True,
    thinking_budget: int | None = None,
    think_start_id: int = 12,
    think_end_id: int = 13,
    verifier_mix: float = 1.0,
    tree_nodes: int = 0,
    groups: int = 0,
) -> Generation:
    """Continue a prompt of token ids.

    mode: "ar", "diffusion", "linear" or "quadratic". Parameters that the mode doesn't use are validated and ignored.
    max_new_tokens: maximum number of output tokens, EOS included.
    block_length: B, the anchor and its B - 1 drafts; defaults to the config's block_size. The last block is shortened
        to fit the context.
    threshold: commit a position at this confidence or above, in [0, 1]; defaults to 0.9 in diffusion and 0 in linear.
    temperature: 0 is greedy. Pass seed or generator (not both) for reproducible sampling.
    eos_token_ids: defaults to the config's. ignore_eos: always generate max_new_tokens.
    lora: use the draft adapter, if the model has one, in linear mode's draft forwards and on quadratic mode's masks.
        The released quadratic algorithm does not use it.
    thinking_budget: maximum number of tokens between think_start_id and think_end_id, after which think_end_id is
        forced; None: no limit.
    verifier_mix: λ of quadratic mode's verifier, in [0, 1]; 1 (the AR pathway alone) is lossless.
    tree_nodes: in linear mode, verify a draft tree of this many nodes instead of the chain of B - 1 drafts; 0: the
        chain. B - 1 is the tree's greatest depth.
    groups: in quadratic mode, groups of masks for this many acceptance lengths, the likeliest ones, and a draft forward
        if another one occurs; 0 or B: a group for each, which is the released algorithm.

    Raises ValueError for a value out of range, an empty prompt, a token outside the vocabulary, or a sequence longer
    than max_position_embeddings.
    """
    config, prompt = model.config, [int(token) for token in prompt]
    stop_ids = tuple(config.eos_token_ids if eos_token_ids is None else eos_token_ids)
    special_ids = {} if thinking_budget is None else {"think_start_id": think_start_id, "think_end_id": think_end_id}
    check_request(config, mode, prompt, max_new_tokens, special_ids)
    if seed is not None and generator is not None:
        raise ValueError("seed and generator are mutually exclusive: pass one of them")
    settings = Settings(
        block_length=config.block_size if block_length is None else block_length,
        threshold=DEFAULT_THRESHOLD[mode] if threshold is None else threshold,
        temperature=temperature,
        generator=generator or new_generator(seed),
        lora=lora,
        verifier_mix=verifier_mix,
        tree_nodes=tree_nodes if mode == "linear" else 0,
        groups=groups if mode == "quadratic" else 0,
    )
    thinking = None if thinking_budget is None else Thinking(thinking_budget, think_start_id, think_end_id).read(prompt)
    output = Output(limit=max_new_tokens, stop_ids=() if ignore_eos else stop_ids, thinking=thinking)
    decode = decode_tree if settings.tree_nodes else LOOPS[mode]
    decode(model, prompt, settings, output)
    return output.result()
