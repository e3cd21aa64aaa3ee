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


def quadratic_groups(length: int, ends: Sequence[int], masks: int, cached: int = 0) -> torch.Tensor:
    """A round of quadratic mode: the block, the last token and its drafts, then a group of masks for each end.

    A token of the block sees the cache and the block up to itself. A mask sees the cache, the block up to its group's
    end, and all masks of its group.

    length: of the block. ends: for each group, the index of a token of the block. masks: how many a group has.
    """
    total = length + len(ends) * masks
    among = torch.zeros(total, total, dtype=torch.bool)
    among[:length, :length] = causal(length)
    for group, end in enumerate(ends):
        own = slice(length + group * masks, length + (group + 1) * masks)
        among[own, : end + 1] = True
        among[own, own] = True
    return torch.cat([block(len(among), cached)[:, :cached], among], dim=1)


def tree(parents: Sequence[int], cached: int = 0) -> torch.Tensor:
    """A draft tree, parents (-1: none) before children: each row sees the cache, its ancestors and itself."""
    among = torch.eye(len(parents), dtype=torch.bool)
    for row, parent in enumerate(parents):
        if parent >= 0:
            among[row] |= among[parent]
    return torch.cat([block(len(parents), cached)[:, :cached], among], dim=1)
