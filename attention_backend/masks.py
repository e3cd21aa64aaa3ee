"""The attention masks of NLD models, each a small frozen description with a dense reference.

T new tokens follow C cached ones; S = C + T. Every new token sees the whole cache, so a mask only relates the new
tokens to each other, and `dense` prepends the cache's columns.

    Block(32).dense(cached=100)          # [32, 132] bool, True where the row attends to the column
    QuadraticGroups.full(4).sees(row, column)

`causal` is the causal argument with which a plain attention kernel computes the mask; None means that the mask needs a
kernel that takes explicit masks, see `rows.py`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

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
        row: torch.Tensor,  # int64 in [0, T), the query's token
        column: torch.Tensor,  # int64 in [0, T), the key's token; broadcast with row
    ) -> torch.Tensor:  # bool
        """Whether one new token attends to another."""

    @abstractmethod
    def label(self, token: int) -> str:
        """A short name of a new token, for plots and messages."""

    def positions(self) -> torch.Tensor:  # [T] int64
        """Position of each new token, relative to the first one after the cache."""
        return torch.arange(self.length)

    def dense(self, cached: int = 0) -> torch.Tensor:  # [T, C + T] bool
        """The whole mask, True where a row attends to a column."""
        index = torch.arange(self.length)
        among = self.sees(index[:, None], index[None, :])
        return torch.cat([torch.ones(self.length, cached, dtype=torch.bool), among], dim=1)


def _check_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")


@dataclass(frozen=True, slots=True)
class Causal(Mask):
    """Prefill, verify, commit: each token sees itself and all earlier tokens."""

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
    """Draft, denoise: every token of the block [anchor, mask ...] sees the whole block."""

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
    """Consecutive blocks: each token sees its whole own block and all earlier blocks."""

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
    """A round of quadratic self-speculation: a block [anchor, drafts], then a group of masks for each end.

    A token of the block sees the block up to itself. A mask sees the block up to its group's end, and its group. In the
    full form there is a group for each token of the block, of as many masks as the block has tokens.
    """

    block_length: int
    ends: tuple[int, ...]  # for each group, the index of the last token of the block that it sees
    masks: int  # of a group
    causal: ClassVar[bool | None] = None

    def __post_init__(self) -> None:
        _check_positive(block_length=self.block_length, masks=self.masks)
        for end in self.ends:
            if not 0 <= end < self.block_length:
                raise ValueError(f"a group must end at one of the block's {self.block_length} tokens, not at {end}")

    @classmethod
    def full(cls, block_length: int) -> Self:
        """One group per number of accepted drafts."""
        return cls(block_length, tuple(range(block_length)), block_length)

    @property
    def length(self) -> int:
        return self.block_length + len(self.ends) * self.masks

    def _group(self, token: torch.Tensor) -> torch.Tensor:
        """The group of each token; negative in the block."""
        return torch.div(token - self.block_length, self.masks, rounding_mode="floor")

    def _end(self, token: torch.Tensor) -> torch.Tensor:
        """The last token of the block that each token sees."""
        ends = torch.tensor([*self.ends, 0])
        return torch.where(token < self.block_length, token, ends[self._group(token).clamp(min=0)])

    def sees(self, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        in_block = column < self.block_length
        same_group = self._group(row) == self._group(column)
        return torch.where(in_block, column <= self._end(row), same_group)

    def label(self, token: int) -> str:
        group, place = divmod(token - self.block_length, self.masks)
        if group < 0:
            return "anchor" if token == 0 else f"d{token}"
        return f"g{group}.{place + 1}"

    def positions(self) -> torch.Tensor:  # [T] int64
        """A group's masks follow its end, so groups overlap."""
        index = torch.arange(self.length)
        after = self._end(index) + 1 + (index - self.block_length) % self.masks
        return torch.where(index < self.block_length, index, after)


@dataclass(frozen=True, slots=True)
class Tree(Mask):
    """A draft tree: each node sees itself and its ancestors, so each path from the root is a causal sequence.

    Token 0 is the root: the last accepted token. Parents come before their children.
    """

    parents: tuple[int, ...]  # of each token; -1 for the root
    causal: ClassVar[bool | None] = None

    def __post_init__(self) -> None:
        if not self.parents or self.parents[0] != -1:
            raise ValueError("the first token of a tree must be its root, with parent -1")
        for token, parent in enumerate(self.parents[1:], start=1):
            if not 0 <= parent < token:
                raise ValueError(
                    f"token {token} of a tree must have one of the tokens before it as parent, not {parent}"
                )

    @property
    def length(self) -> int:
        return len(self.parents)

    def sees(self, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        above = torch.eye(self.length, dtype=torch.bool)
        for token, parent in enumerate(self.parents[1:], start=1):
            above[token] |= above[parent]
        return above[row, column]

    def label(self, token: int) -> str:
        return "root" if token == 0 else f"n{token}<{self.parents[token]}"

    def positions(self) -> torch.Tensor:  # [T] int64
        """A node's position is its depth, so siblings share one."""
        depths = [0] * self.length
        for token, parent in enumerate(self.parents[1:], start=1):
            depths[token] = depths[parent] + 1
        return torch.tensor(depths)


def kernel_causal(mask: Mask) -> bool:
    """The causal argument for a plain attention kernel. Raises ValueError if the mask needs explicit masking."""
    if mask.causal is None:
        raise ValueError(
            f"{mask} is neither causal nor fully bidirectional, and no kernel of vLLM supports that: "
            "use Causal or Block, or hand it to the layers with attention_backend.rows.attach"
        )
    return mask.causal
