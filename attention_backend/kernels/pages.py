"""Reads the pages of vLLM's CPU cache, however its kernel packs them.

The CPU kernel stores a page of P tokens per head in an order of its own, which depends on the instruction set: keys
transposed ("vec"), or keys and values in the tiles that a matrix unit loads ("amx"). Instead of knowing them all,
`packing` has the kernel's cache update store a page of distinct numbers and looks where they went.
"""

from dataclasses import dataclass
from functools import cache

import torch
from vllm._custom_ops import cpu_attn_reshape_and_cache

BASE = 128  # numbers below it are exact in every dtype of a cache


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """Where a page of one head stores the elements of its P tokens, of keys or of values."""

    places: torch.Tensor  # [P, D] int64, each element's place among the P · D
    strides: tuple[int, int] | None  # of a [P, D] view that reads them in order; None if there is none

    def read(
        self,
        pages: torch.Tensor,  # [R, n, G, P · D]
    ) -> torch.Tensor:  # [R · G, n · P, D] float32
        """The tokens of these pages, in order."""
        if self.strides is None:
            tokens = pages[..., self.places]
        else:
            shape, outer = (*pages.shape[:3], *self.places.shape), pages.stride()[:3]
            tokens = pages.as_strided(shape, (*outer, *self.strides))
            if self.strides[0] < self.strides[1]:  # stay transposed: it is faster to copy and to multiply with
                return _copy(tokens.permute(0, 2, 4, 1, 3)).flatten(3).flatten(0, 1).transpose(1, 2)
        return _copy(tokens.transpose(1, 2)).flatten(2, 3).flatten(0, 1)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """In this order in memory, and in float32, in one go."""
    return torch.empty(tensor.shape).copy_(tensor)


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """How a page is packed: P · D elements of keys, then as many of values, per head."""

    key: Order
    value: Order

    def read(
        self,
        cache: torch.Tensor,  # [N, G, P, 2 D]
        wanted: torch.Tensor,  # [R, n] int64, indices in N
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [R · G, n · P, D] float32 each
        """Keys and values of these pages of R requests, in order."""
        pages = cache.flatten(1).index_select(0, wanted.flatten())
        pages = pages.view(*wanted.shape, cache.shape[1], 2, -1)  # [R, n, G, 2, P · D]
        return self.key.read(pages[..., 0, :]), self.value.read(pages[..., 1, :])


@cache
def packing(
    isa: str,  # the kernel's instruction set, by vLLM's name
    page_size: int,  # P
    head_size: int,  # D
    dtype: torch.dtype,  # of the cache
) -> Packing:
    """How vLLM's kernel packs a page."""
    size = page_size * head_size
    found = torch.zeros(2, size, dtype=torch.int64)  # the element at each place
    digit = 1
    while digit < size:
        numbers = (torch.arange(size) // digit % BASE).view(page_size, 1, head_size).to(dtype)
        page = torch.zeros(2, 1, 1, page_size, head_size, dtype=dtype)
        cpu_attn_reshape_and_cache(numbers, numbers, page[0], page[1], torch.arange(page_size), isa)
        found += page.view(2, size).long() * digit
        digit *= BASE
    if not torch.equal(found.sort(dim=1).values, torch.arange(size).expand(2, -1)):
        raise AssertionError(f"vLLM's {isa} kernel does not store {dtype} keys and values as they are")
    key, value = (_order(places.view(page_size, head_size)) for places in found.argsort(dim=1))
    return Packing(key, value)


def _order(places: torch.Tensor) -> Order:
    strides = int(places[1, 0]), int(places[0, 1])
    tokens, elements = (torch.arange(count) for count in places.shape)
    plain = tokens[:, None] * strides[0] + elements * strides[1]
    return Order(places, strides if torch.equal(plain, places) else None)
