"""Prompts for tiny models."""

import torch

from vllm_nld.reference import ReferenceModel


def prompts(model: ReferenceModel, count: int, seed: int = 0) -> list[list[int]]:
    """Random prompts of 1, 4, 7, … tokens; the last one (70) exceeds the tiny model's original context of 64."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [1 + 3 * index for index in range(count - 1)] + [70]
    return [torch.randint(model.config.vocab_size, (length,), generator=generator).tolist() for length in lengths]
