"""Dense attention masks: [T, S] bool, True where a new token (row) attends to a cached or new token (column).

S = C + T: the C cached tokens come first and every row sees all of them, then the T new tokens. B is the block length.
"""

from collections.abc import Sequence

import torch


def causal(new: int, cached: int = 0) -> torch.Tensor:
    """AR pathway: each new token sees the cache, the new tokens before it and itself."""
    return torch.ones(new, cached + new, dtype=torch.bool).tril(diagonal=cached)


def block(new: int, cached: int = 0) -> torch.Tensor:
    """Diffusion pathway: each token of the block sees the cache and the whole block."""
    return torch.ones(new, cached + new, dtype=torch.bool)


def prompt_with_masks(prompt: int, masks: int) -> torch.Tensor:
    """Quadratic mode's first forward: a causal prompt, then mask tokens that see everything."""
    mask = causal(prompt + masks)
    mask[prompt:] = True
    return mask


def quadratic_groups(block_length: int, cached: int = 0) -> torch.Tensor:
    """A round of quadratic mode: B groups of B + 1 tokens, each [draft i, B masks].

    A draft sees the cache and the drafts up to itself. A mask sees the cache, the drafts up to its own group's, and
    all masks of its group.
    """
    size = block_length + 1
    index = torch.arange(block_length * size)
    group, is_draft = index // size, index % size == 0
    earlier_drafts = is_draft & (group <= group.unsqueeze(1))
    own_masks = ~is_draft & ~is_draft.unsqueeze(1) & (group == group.unsqueeze(1))
    return torch.cat([block(len(index), cached)[:, :cached], earlier_drafts | own_masks], dim=1)


def tree(parents: Sequence[int], cached: int = 0) -> torch.Tensor:
    """A draft tree, parents (-1: none) before children: each row sees the cache, its ancestors and itself."""
    among = torch.eye(len(parents), dtype=torch.bool)
    for row, parent in enumerate(parents):
        if parent >= 0:
            among[row] |= among[parent]
    return torch.cat([block(len(parents), cached)[:, :cached], among], dim=1)
