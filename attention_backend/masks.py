"""Who may look at whom: every attention mask of the family as a small frozen description with a dense reference.

T new tokens follow C cached ones; S = C + T. Every new token sees the whole cache, so a mask is a relation among the
new tokens alone, and `dense` puts the cache's columns in front.

    Block(32).dense(cached=100)          # [32, 132] bool, True where row may look at column
    QuadraticGroups(4).sees(row, column)

`causal` says how a plain attention kernel serves the mask: True or False is the kernel's causal argument, None means
that it takes a kernel with explicit masks.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch


class Mask(ABC):
    """A relation among T new tokens."""

    causal: ClassVar[bool | None]

    @property
    @abstractmethod
    def length(self) -> int:
        """T, the number of new tokens."""

    @abstractmethod
    def sees(
        self,
        row: torch.Tensor,  # int64 in [0, T), the token that looks
        column: torch.Tensor,  # int64 in [0, T), the token looked at; broadcast with row
    ) -> torch.Tensor:  # bool
        """Whether one new token may look at another."""

    @abstractmethod
    def label(self, token: int) -> str:
        """What a new token is, for plots and messages."""

    def positions(self) -> torch.Tensor:  # [T] int64
        """Position of each new token, counted from the first one after the cache."""
        return torch.arange(self.length)

    def dense(self, cached: int = 0) -> torch.Tensor:  # [T, C + T] bool
        """The whole mask, True where a row may look at a column."""
        index = torch.arange(self.length)
        among = self.sees(index[:, None], index[None, :])
        return torch.cat([torch.ones(self.length, cached, dtype=torch.bool), among], dim=1)


def _check_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")


@dataclass(frozen=True, slots=True)
class Causal(Mask):
    """Prefill, verify, commit: each token sees itself and the ones before it."""

    tokens: int
    causal: ClassVar[bool | None] = True

    def __post_init__(self) -> None:
        _check_positive(tokens=self.tokens)

    @property
    def length(self) -> int:
        return self.tokens

    def sees(self, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        return column <= row

    def label(self, token: int) -> str:
        return f"t{token}"


@dataclass(frozen=True, slots=True)
class Block(Mask):
    """Draft, denoise: each token of the block [anchor, mask ...] sees the whole block."""

    block_length: int
    causal: ClassVar[bool | None] = False

    def __post_init__(self) -> None:
        _check_positive(block_length=self.block_length)

    @property
    def length(self) -> int:
        return self.block_length

    def sees(self, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        return (row >= 0) & (column >= 0)

    def label(self, token: int) -> str:
        return "anchor" if token == 0 else f"m{token}"


@dataclass(frozen=True, slots=True)
class BlockCausal(Mask):
    """Blocks one after the other: each token sees its own block in both directions and every block before it."""

    tokens: int
    block_length: int
    causal: ClassVar[bool | None] = None

    def __post_init__(self) -> None:
        _check_positive(tokens=self.tokens, block_length=self.block_length)

    @property
    def length(self) -> int:
        return self.tokens

    def sees(self, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        return column // self.block_length <= row // self.block_length

    def label(self, token: int) -> str:
        return f"b{token // self.block_length}.{token % self.block_length}"


@dataclass(frozen=True, slots=True)
class QuadraticGroups(Mask):
    """A round of quadratic self-speculation: B groups [draft i, B masks], one for each number of accepted drafts.

    A draft sees the drafts up to itself. A mask sees the drafts up to its own group's, and its group's masks in both
    directions, nothing else.
    """

    block_length: int
    causal: ClassVar[bool | None] = None

    def __post_init__(self) -> None:
        _check_positive(block_length=self.block_length)

    @property
    def length(self) -> int:
        return self.block_length * (self.block_length + 1)

    def sees(self, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        size = self.block_length + 1
        row_group, column_group = row // size, column // size
        row_is_draft, column_is_draft = row % size == 0, column % size == 0
        earlier_drafts = column_is_draft & (column_group <= row_group)
        own_masks = ~column_is_draft & ~row_is_draft & (column_group == row_group)
        return earlier_drafts | own_masks

    def label(self, token: int) -> str:
        group, place = divmod(token, self.block_length + 1)
        return f"d{group}" if place == 0 else f"m{group}.{place}"

    def positions(self) -> torch.Tensor:  # [T] int64
        """Group i starts at position i, so groups overlap: mask p of group i competes for position i + p."""
        index = torch.arange(self.length)
        return index // (self.block_length + 1) + index % (self.block_length + 1)


def kernel_causal(mask: Mask) -> bool:
    """The causal argument of a plain attention kernel. Raises ValueError for a mask that takes a masking kernel."""
    if mask.causal is None:
        raise ValueError(
            f"{mask} is neither causal nor fully bidirectional: no attention backend of vLLM serves it; "
            "use Causal or Block, or run it as one pass for each of its groups"
        )
    return mask.causal
