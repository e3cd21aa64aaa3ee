"""Masks among the rows of one step, in one form for every kernel: a bitset per row.

A step computes T rows, one per scheduled token, request after request. Every row sees its request's whole prefix: the
tokens before the request's own rows in this step. Among these rows it sees what its bits say. Causal, block,
block-causal, quadratic groups and trees are all such masks (`masks.py`).

    mask = RowMask(bits, requests=np.array([0, 2]))  # request 1 stays as the metadata says: causal
    attach(metadata, mask)                           # what the layers' metadata builders returned for this step

`step_mask([Tree(parents), Causal(5), None])` builds one from descriptions, for tests and small host-side batches.
`reference.attend_step` is what every kernel computes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from attention_backend.masks import Mask

WORD = 32  # bits in an int32


@dataclass(frozen=True, slots=True, eq=False)
class RowMask:
    """Which of a step's own rows each row sees, for requests whose rows are not plainly causal.

    Each row must see itself. The KV of all rows must be in the cache, in consecutive slots after the prefix.

    In a CUDA graph, `bits` must be a buffer that the next replay overwrites in place, and `requests` must be all
    requests of the graph: those without a mask of their own then need the bits of `Causal`.
    """

    bits: torch.Tensor  # [T, W] int32 or more rows, on the layers' device; bit j of row t: t sees row j of its request
    requests: np.ndarray  # [M] int, ascending: the batch's requests with masks, each of at most 32 * W rows

    def __post_init__(self) -> None:
        if self.bits.dim() != 2 or self.bits.dtype != torch.int32 or not self.bits.is_contiguous():
            raise ValueError(f"bits must be a contiguous [T, W] int32 tensor, not {self.bits.shape} {self.bits.dtype}")
        if self.requests.ndim != 1 or not len(self.requests) or (np.diff(self.requests) <= 0).any():
            raise ValueError(f"requests must be a non-empty ascending list of rows of the batch, not {self.requests}")


def attach(metadata: dict[str, Any], mask: RowMask | None) -> None:
    """Hand a step's mask to the attention metadata of every layer. None: the step has no mask."""
    if mask is not None:
        for layer in metadata.values():
            layer.row_mask = mask


def attached(metadata: Any) -> RowMask | None:
    """The mask that a layer's metadata carries."""
    return getattr(metadata, "row_mask", None)


def words(length: int) -> int:
    """W, the number of int32 words that hold a bit per row."""
    return -(-length // WORD)


def pack(
    among: torch.Tensor,  # [..., T] bool, True where a row sees a row
    width: int | None = None,  # W, at least words(T)
) -> torch.Tensor:  # [..., W] int32
    """Bits of a dense relation. Doesn't wait for the device."""
    width = words(among.shape[-1]) if width is None else width
    padded = torch.nn.functional.pad(among, (0, width * WORD - among.shape[-1])).unflatten(-1, (width, WORD))
    place = torch.arange(WORD, dtype=torch.int32, device=among.device)
    return (padded.to(torch.int32) << place).sum(dim=-1, dtype=torch.int32)


def unpack(
    bits: torch.Tensor,  # [..., W] int32
    length: int,  # T, at most 32 * W
) -> torch.Tensor:  # [..., T] bool
    """The dense relation that bits stand for. Doesn't wait for the device."""
    place = torch.arange(WORD, dtype=torch.int32, device=bits.device)
    return (bits[..., None] >> place & 1).flatten(-2)[..., :length].bool()


def step_mask(
    masks: Sequence[Mask | None],  # one per request of the batch; None: no mask of its own
    lengths: Sequence[int],  # rows of each request; a mask has as many
) -> RowMask | None:
    """The row mask of a batch; None if no request has a mask. Raises ValueError if a mask has another length."""
    given = {request: mask for request, mask in enumerate(masks) if mask is not None}
    for request, mask in given.items():
        if mask.length != lengths[request]:
            raise ValueError(f"request {request} has {lengths[request]} rows, but its mask {mask} has {mask.length}")
    if not given:
        return None
    width = words(max(mask.length for mask in given.values()))
    bits = torch.zeros(sum(lengths), width, dtype=torch.int32)
    for request, mask in given.items():
        first = sum(lengths[:request])
        bits[first : first + mask.length] = pack(mask.dense(), width)
    return RowMask(bits, np.array(list(given)))
