"""Training batches: a clean copy of each conversation, and a noisy copy of its answer cut into blocks.

Block starts at inference are arbitrary, so the block grid starts at a random token of each answer. Within a block the
first token is the last accepted one and stays visible, except in fully masked blocks, which are what quadratic
drafting sees. Positions start at a random offset, so that the model also works deep into its context.

    for batch in batches(tokenizer, seed=0, rows=6144):
        batch.clean, batch.noisy                   # [N, L], [N, A] int64

Letters: N conversations, L clean tokens, A noisy tokens (whole blocks of B).
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from vllm_nld.nano.copying import copies
from vllm_nld.nano.prompts import Prompt, stream
from vllm_nld.nano.tokenizer import EOS, MASK

IGNORED = -100
MAX_OFFSET = 3500
POOL = 1024  # conversations that are sorted by length at a time
AFTER_END_WEIGHT = 0.2  # tokens after the end are easy and never counted


@dataclass(frozen=True, slots=True)
class NoiseMix:
    """Shares of the three kinds of block; the rest is masked at random, which is what denoising sees."""

    draft: float = 0.0  # first token visible, all others masked: linear drafting, which the adapter learns
    full: float = 0.1  # all masked: quadratic drafting
    lengths: tuple[int, ...] = (32, 32, 32, 32, 32, 32, 32, 16, 16, 8)  # block lengths, one a batch

    def __post_init__(self) -> None:
        if not 0 <= self.draft + self.full <= 1:
            raise ValueError(f"shares of blocks must add up to at most 1, not {self.draft + self.full}")


@dataclass(frozen=True, slots=True)
class Batch:
    """Labels are token ids or IGNORED; a noisy row's label is its own token, a clean row's label the next token."""

    clean: torch.Tensor  # [N, L] int64, padded on the right
    clean_labels: torch.Tensor  # [N, L] int64
    noisy: torch.Tensor  # [N, A] int64
    noisy_labels: torch.Tensor  # [N, A] int64, only where noisy is the mask token
    noisy_weights: torch.Tensor  # [N, A] float32
    noisy_index: torch.Tensor  # [N, A] int64, index into the clean copy
    block_start: torch.Tensor  # [N, A] int64, index of the first token of each noisy row's block; -1: padding
    offset: torch.Tensor  # [N] int64, position of the first clean token
    block_length: int


def encode(tokenizer: Any, prompt: Prompt) -> tuple[list[int], list[int]]:
    """Token ids of the generation prompt (through the chat template, as when served) and of completion and end."""
    text = tokenizer.apply_chat_template(
        list(prompt.messages),
        tools=list(prompt.tools) or None,
        add_generation_prompt=True,
        enable_thinking=prompt.thinking,
        tokenize=False,
    )
    completion = tokenizer.encode(prompt.completion, add_special_tokens=False)
    return tokenizer.encode(text, add_special_tokens=False), [*completion, EOS]


def mask_block(rng: random.Random, length: int, mix: NoiseMix) -> list[bool]:
    """Which tokens of a block are masked."""
    kind = rng.random()
    if kind < mix.draft:
        return [False] + [True] * (length - 1)
    if kind < mix.draft + mix.full:
        return [True] * length
    level = rng.random()
    return [False] + [rng.random() < level for _ in range(length - 1)]


def collate(
    rng: random.Random,
    samples: list[tuple[list[int], list[int]]],  # prompt ids, completion ids with their end token
    mix: NoiseMix,
) -> Batch:
    """Cut, mask and pad a few conversations into one batch."""
    block_length = rng.choice(mix.lengths)
    clean, clean_labels, rows, offsets = [], [], [], []
    for prompt, completion in samples:
        ids = prompt + completion
        clean.append(ids)
        clean_labels.append([IGNORED] * (len(prompt) - 1) + completion + [IGNORED])
        latest = min(block_length, len(completion)) - 1
        start = len(prompt) + (0 if rng.random() < 0.3 else rng.randint(0, latest))
        row = []
        for first in range(start, len(ids), block_length):
            for i, masked in enumerate(mask_block(rng, block_length, mix)):
                place = first + i
                inside = place < len(ids)
                token = ids[place] if inside else EOS
                label = token if masked else IGNORED
                row.append((MASK if masked else token, label, 1.0 if inside else AFTER_END_WEIGHT, place, first))
        rows.append(row)
        offsets.append(0 if rng.random() < 0.5 else rng.randint(0, MAX_OFFSET))
    noisy, labels, weights, index, starts = ([[entry[column] for entry in row] for row in rows] for column in range(5))
    return Batch(
        pad(clean, 0),
        pad(clean_labels, IGNORED),
        pad(noisy, 0),
        pad(labels, IGNORED),
        pad(weights, 0.0),
        pad(index, 0),
        pad(starts, -1),
        torch.tensor(offsets),
        block_length,
    )


def pad(rows: list[list[Any]], value: Any) -> torch.Tensor:
    """Rows of unequal length as one tensor, filled up on the right."""
    width = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def batches(
    tokenizer: Any, seed: int, rows: int, mix: NoiseMix | None = None, copy_share: float = 0.0
) -> Iterator[Batch]:
    """Endless batches of about `rows` tokens, both copies counted; conversations of like length go together.

    copy_share: the share of samples that only teach copying.
    """
    mix = mix or NoiseMix()
    prompts, rng = stream(seed), random.Random(seed + 1)
    warmup = copies(tokenizer, random.Random(seed + 2))
    while True:
        pool = [next(warmup) if rng.random() < copy_share else encode(tokenizer, next(prompts)) for _ in range(POOL)]
        pool.sort(key=lambda pair: sum(map(len, pair)))
        groups: list[list[tuple[list[int], list[int]]]] = [[]]
        for pair in pool:
            width = len(pair[0]) + 2 * len(pair[1]) + 16
            if groups[-1] and width * (len(groups[-1]) + 1) > rows:
                groups.append([])
            groups[-1].append(pair)
        rng.shuffle(groups)
        yield from (collate(rng, group, mix) for group in groups)
