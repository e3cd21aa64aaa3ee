"""Draft blocks: their layout in a forward (on the CPU) and their contents (on the device)."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from vllm_nld.serving.modes import Mode


@dataclass(frozen=True)
class Layout:
    """The layout of a forward over blocks of unequal length, one after another."""

    lengths: np.ndarray  # [R] int64
    block_length: int  # B, the longest possible

    def __post_init__(self) -> None:
        if not len(self.lengths) or self.lengths.min() < 2 or self.lengths.max() > self.block_length:
            raise ValueError(f"blocks must have 2 to {self.block_length} tokens, not {self.lengths}")

    def query_start_loc(self, requests: int) -> np.ndarray:  # [requests + 1] int32
        """The first row of each block; padded requests start at the end and have no rows."""
        starts = np.full(requests + 1, self.tokens, dtype=np.int32)
        starts[: len(self.lengths)] = self.first
        return starts

    @cached_property
    def first(self) -> np.ndarray:  # [R] int64
        """The row of each block's anchor in the forward."""
        return self.lengths.cumsum() - self.lengths

    @cached_property
    def uniform(self) -> int | None:
        """The length of all blocks, or None if they differ."""
        first = int(self.lengths[0])
        return first if (self.lengths == first).all() else None

    @cached_property
    def tokens(self) -> int:
        """The number of tokens in all blocks, T."""
        return int(self.lengths.sum())

    def rows(self, block: np.ndarray, place: np.ndarray) -> np.ndarray:
        """The rows in the forward of the given places in the given blocks."""
        return self.first[block] + place


@dataclass(slots=True)
class Blocks:
    """Blocks that are filled together. R requests, at most B tokens per block, K = B - 1."""

    mode: Mode
    rows: np.ndarray  # [R], the requests' rows in the step's batch
    slots: np.ndarray  # [R], their state slots
    lengths: np.ndarray  # [R], their block lengths in this step
    nodes: np.ndarray  # [R], nodes of the trees to grow; 0: a chain
    groups: np.ndarray  # [R], groups of masks that follow the block in the next step
    starts: torch.Tensor  # [R] int64, positions of the anchors
    ids: torch.Tensor  # [R, B] int64, the mask token if undecided
    masked: torch.Tensor  # [R, K] bool
    certainty: torch.Tensor | None = None  # [R, K] float64, the probability of each draft, if somebody asks

    @property
    def chooses_groups(self) -> bool:
        """Whether some block is followed by groups for some numbers of accepted drafts, but not for all."""
        return bool(((self.groups > 0) & (self.groups < self.lengths)).any())

    def open_places(self) -> np.ndarray:  # [R, K] bool
        """The draft places before the first pass: `masked`, but known on the CPU and not cut at the context's end."""
        return np.arange(1, self.ids.shape[1]) < self.lengths[:, None]
