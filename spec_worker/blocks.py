"""The layout of a draft pass: blocks of unequal length one after another. All of it is known on the CPU."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Layout:
    """Blocks of unequal length one after another, as a forward takes them."""

    lengths: np.ndarray  # [R] int64
    block_length: int  # B, the longest that may be

    def __post_init__(self) -> None:
        if not len(self.lengths) or self.lengths.min() < 2 or self.lengths.max() > self.block_length:
            raise ValueError(f"blocks must have 2 to {self.block_length} tokens, not {self.lengths}")

    def query_start_loc(self, requests: int) -> np.ndarray:  # [requests + 1] int32
        """Each block's first row; of requests past the last block, which have no rows, the end."""
        starts = np.full(requests + 1, self.tokens, dtype=np.int32)
        starts[: len(self.lengths)] = self.first
        return starts

    @cached_property
    def first(self) -> np.ndarray:  # [R] int64
        """Each block's first row in the forward."""
        return self.lengths.cumsum() - self.lengths

    @cached_property
    def uniform(self) -> int | None:
        """The length that all blocks have; None where they differ."""
        first = int(self.lengths[0])
        return first if (self.lengths == first).all() else None

    @cached_property
    def tokens(self) -> int:
        """Tokens of all blocks, T."""
        return int(self.lengths.sum())

    def rows(self, block: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Rows of the forward that hold these blocks' tokens at these places."""
        return self.first[block] + place
