"""Where each request's next block lies: anchors, positions, KV slots and lengths of a draft pass, for all at once.

A block is [anchor, mask x (B - 1)], right after the tokens that the target forward has kept. Its KV goes into lookahead
slots: past the computed tokens, in blocks that the request owns, never anywhere else. All of it is tensor arithmetic
that does not look at the device.
"""

from dataclasses import dataclass

import numpy as np
import torch

NO_SLOT = -1  # vLLM's slot for "write no KV"


@dataclass(frozen=True, slots=True)
class Step:
    """What a target step leaves behind, as the worker hands it to a speculator. R requests, T tokens, N state slots."""

    positions: torch.Tensor  # [T] int64, of the target forward's tokens
    query_start_loc: torch.Tensor  # [R + 1] int32, each request's first row in T
    slots: torch.Tensor  # [R] int64, each request's row in the tensors of N
    num_sampled: torch.Tensor  # [R] int32, tokens accepted now, bonus included; 0 inside a prompt
    num_rejected: torch.Tensor  # [R] int32, rows at the end whose tokens were dropped
    last_sampled: torch.Tensor  # [N] int64
    next_prompt: torch.Tensor  # [N] int32, the prompt token after the computed ones

    def __post_init__(self) -> None:
        requests = len(self.slots)
        if len(self.query_start_loc) != requests + 1 or len(self.num_rejected) != requests:
            raise ValueError(f"{requests} requests need {requests + 1} query starts and {requests} rejection counts")

    def anchors(self) -> torch.Tensor:  # [R] int64
        """The last accepted token of each request: it is known, but its KV is not in the cache yet."""
        sampled, prompt = self.last_sampled[self.slots], self.next_prompt[self.slots].long()
        return torch.where(self.num_sampled > 0, sampled, prompt)

    def starts(self) -> torch.Tensor:  # [R] int64
        """The position of each anchor: one past the last row whose token was kept."""
        last = self.query_start_loc[1:] - 1 - self.num_rejected
        return self.positions[last.long()] + 1


def places(
    start: torch.Tensor,  # [R] int64, position of the anchor
    block_length: int,
    max_model_len: int,
) -> torch.Tensor:  # [R, B] int64
    """Positions of every block's tokens; those past the context's end repeat its last position and are never used."""
    offsets = torch.arange(block_length, device=start.device)
    return (start[:, None] + offsets).clamp(max=max_model_len - 1)


def lookahead_slots(
    start: torch.Tensor,  # [R] int64
    length: torch.Tensor,  # [R] int64, tokens of each block, at most B
    block_length: int,  # B
    block_table: torch.Tensor,  # [R, W] int32, KV block ids; entries past num_blocks are stale
    num_blocks: torch.Tensor,  # [R] int32, KV blocks that the request owns
    kv_block_size: int,
    max_model_len: int,
) -> torch.Tensor:  # [R, B] int64, NO_SLOT past the block's end, the context's end or the owned blocks
    """KV slots of every block's tokens."""
    offset = torch.arange(block_length, device=start.device)
    position = start[:, None] + offset
    index = position // kv_block_size
    owned = (index < num_blocks[:, None]) & (position < max_model_len) & (offset < length[:, None])
    block = block_table.gather(1, index.clamp(max=block_table.shape[1] - 1)).long()
    return torch.where(owned, block * kv_block_size + position % kv_block_size, NO_SLOT)


def visible(
    start: torch.Tensor,  # [R] int64
    length: torch.Tensor,  # [R] int64, tokens of each block
    num_blocks: torch.Tensor,  # [R] int32
    kv_block_size: int,
    max_model_len: int,
) -> torch.Tensor:  # [R] int64
    """Tokens that a block's rows may look at: the prefix and the block, cut where it has no slot."""
    room = (num_blocks * kv_block_size).clamp(max=max_model_len)
    return torch.minimum(start + length, room)


@dataclass(frozen=True, slots=True)
class Layout:
    """Blocks of unequal length one after another, as a forward takes them. All of it is known on the CPU."""

    lengths: np.ndarray  # [R] int64
    block_length: int  # B, the longest that may be

    def __post_init__(self) -> None:
        if not len(self.lengths) or self.lengths.min() < 2 or self.lengths.max() > self.block_length:
            raise ValueError(f"blocks must have 2 to {self.block_length} tokens, not {self.lengths}")

    def query_start_loc(self, requests: int) -> np.ndarray:  # [requests + 1] int32
        """Each block's first row; of requests past the last block, which have no rows, the end."""
        starts = np.full(requests + 1, self.lengths.sum(), dtype=np.int32)
        starts[0] = 0
        np.cumsum(self.lengths, out=starts[1 : len(self.lengths) + 1])
        return starts

    @property
    def uniform(self) -> int | None:
        """The length that all blocks have; None where they differ."""
        first = int(self.lengths[0])
        return first if (self.lengths == first).all() else None

    @property
    def tokens(self) -> np.ndarray:  # [T] int64
        """Where each token of the forward stands in [R, B], flattened."""
        return np.flatnonzero(np.arange(self.block_length) < self.lengths[:, None])

    def rows(self, block: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Rows of the forward that hold these blocks' tokens at these places."""
        return self.query_start_loc(len(self.lengths))[block].astype(np.int64) + place
