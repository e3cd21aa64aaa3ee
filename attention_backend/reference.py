"""Dense fp32 attention over a paged KV cache: the reference for every kernel.

Letters in shapes: T new tokens, S cached + new tokens, H query heads, G key/value heads, D head size, N KV blocks of
P tokens.
"""

from collections.abc import Sequence

import torch

from attention_backend.rows import RowMask, unpack


def gather(
    cache: torch.Tensor,  # [N, G, P, D]
    block_table: torch.Tensor,  # [W] int, the request's KV blocks in order
    length: int,
) -> torch.Tensor:  # [length, G, D]
    """A request's keys or values in position order."""
    blocks = cache[block_table.long()].permute(0, 2, 1, 3)  # [W, P, G, D]
    return blocks.flatten(0, 1)[:length]


def attend(
    query: torch.Tensor,  # [T, H, D]
    keys: torch.Tensor,  # [S, G, D]
    values: torch.Tensor,  # [S, G, D]
    mask: torch.Tensor,  # [T, S] bool, True where a row attends
    scale: float,
) -> torch.Tensor:  # [T, H, D] float32
    """softmax(scale · q · k, masked) · v, with grouped heads."""
    group = query.shape[1] // keys.shape[1]
    keys, values = (x.float().repeat_interleave(group, dim=1) for x in (keys, values))
    scores = torch.einsum("thd,shd->hts", query.float(), keys) * scale
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return torch.einsum("hts,shd->thd", weights, values)


def attend_step(
    query: torch.Tensor,  # [T, H, D], the rows of a step, request after request
    keys: Sequence[torch.Tensor],  # one [S, G, D] per request: its prefix, then its own rows
    values: Sequence[torch.Tensor],  # the same
    lengths: Sequence[int],  # own rows per request
    mask: RowMask | None,
    scale: float,
) -> torch.Tensor:  # [T, H, D] float32
    """A step of several requests: those with a mask by their bits, the others causally."""
    outputs, first = [], 0
    for request, length in enumerate(lengths):
        rows = slice(first, first + length)
        among = torch.ones(length, length, dtype=torch.bool).tril()
        if mask is not None and request in mask.requests:
            among = unpack(mask.bits[rows], length)
        prefix = torch.ones(length, len(keys[request]) - length, dtype=torch.bool)
        sees = torch.cat([prefix, among], dim=1)
        outputs.append(attend(query[rows], keys[request], values[request], sees, scale))
        first += length
    return torch.cat(outputs)
