"""What the forward of a draft pass reads, at addresses that never change: a CUDA graph reads there again and again.

A pass is laid out and padded to the shape that runs, in place. Every pass goes this way, with a graph or without.

    inputs.fill(blocks, requests=4, tokens=128)    # three blocks of 32 in a graph for four

Padding writes no KV and is asked nothing: its slots are NO_SLOT, its requests have no rows and no tokens to look at,
and nobody reads its hidden states. Letters in shapes: R requests, B tokens a block at most, T tokens, W KV blocks.
"""

from dataclasses import dataclass

import torch
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.input_batch import InputBuffers

from spec_worker.blocks import NO_SLOT, Layout, lookahead_slots, places, visible


@dataclass(frozen=True, slots=True)
class Pass:
    """The blocks that one forward runs over."""

    layout: Layout
    ids: torch.Tensor  # [R, B] int64
    starts: torch.Tensor  # [R] int64, positions of the anchors
    table: torch.Tensor  # [R, W] int32, KV block ids
    owned: torch.Tensor  # [R] int32, KV blocks that each request owns
    context: torch.Tensor  # [R] int32 on the CPU, no request has more tokens before its block
    write: bool = True  # whether their KV is written

    def __post_init__(self) -> None:
        if not len(self.layout.lengths) == len(self.ids) == len(self.starts) == len(self.table) == len(self.owned):
            raise ValueError(f"{len(self.layout.lengths)} blocks need as many rows of ids, starts and KV blocks")

    def longest(self, max_model_len: int) -> torch.Tensor:  # [R] int32 on the CPU
        """No row of a block sees more tokens than this."""
        return (self.context + torch.from_numpy(self.layout.lengths)).clamp(max=max_model_len).int()


class Inputs:
    """The buffers. vLLM's capture asks them for block tables and slots, as it asks the target's `BlockTables`."""

    cp_size = 1  # no context parallelism

    def __init__(self, buffers: InputBuffers, kv_block_size: int, table_width: int, max_model_len: int) -> None:
        device = buffers.input_ids.device
        self.buffers = buffers  # ids, positions, query starts and sequence lengths
        self.table = torch.zeros(buffers.max_num_reqs, table_width, dtype=torch.int32, device=device)
        self.slots = torch.full((1, buffers.max_num_tokens), NO_SLOT, dtype=torch.int64, device=device)
        self.kv_block_size = kv_block_size
        self.max_model_len = max_model_len

    def get_dummy_block_tables(self, num_reqs: int) -> tuple[torch.Tensor, ...]:
        return (self.table[:num_reqs].zero_(),)

    def get_dummy_slot_mappings(self, num_tokens: int) -> torch.Tensor:
        return self.slots.fill_(NO_SLOT)[:, :num_tokens]

    def fill(self, blocks: Pass, requests: int, tokens: int) -> None:
        """Lay out a pass, padded to so many requests and tokens."""
        count, total = len(blocks.layout.lengths), len(blocks.layout.tokens)
        length = async_tensor_h2d(blocks.layout.lengths, self.table.device)
        self._fill_tokens(blocks, length, total)
        self._fill_requests(blocks, length, count)
        starts = async_tensor_h2d(blocks.layout.query_start_loc(requests), self.table.device)
        self.buffers.query_start_loc[: requests + 1] = starts
        if tokens > total:
            self.buffers.input_ids[total:tokens] = 0
            self.buffers.positions[total:tokens] = 0
            self.slots[:, total:tokens] = NO_SLOT
        if requests > count:
            self.buffers.seq_lens[count:requests] = 0
            self.table[count:requests] = 0

    def _fill_tokens(self, blocks: Pass, length: torch.Tensor, total: int) -> None:
        block_length = blocks.layout.block_length
        index = async_tensor_h2d(blocks.layout.tokens, self.table.device)
        positions = places(blocks.starts, block_length, self.max_model_len)
        self.buffers.input_ids[:total] = blocks.ids.flatten()[index]
        self.buffers.positions[:total] = positions.flatten()[index]
        if not blocks.write:
            self.slots[:, :total] = NO_SLOT
            return
        where = (block_length, blocks.table, blocks.owned, self.kv_block_size, self.max_model_len)
        self.slots[0, :total] = lookahead_slots(blocks.starts, length, *where).flatten()[index]

    def _fill_requests(self, blocks: Pass, length: torch.Tensor, count: int) -> None:
        seen = visible(blocks.starts, length, blocks.owned, self.kv_block_size, self.max_model_len)
        self.buffers.seq_lens[:count] = seen.clamp(min=length)
        self.table[:count] = blocks.table
