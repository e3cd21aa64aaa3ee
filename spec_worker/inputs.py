"""The input buffers of a draft pass. Their addresses never change, because CUDA graphs read them.

Every pass is written here in place and padded to the shape that runs, with or without a graph:

    inputs.fill(blocks, requests=4, tokens=128)    # three blocks of 32 in a graph for four

Padded rows have slot -1 and padded requests have zero length; their outputs are ignored. Letters in shapes: R requests,
at most B tokens per block, T tokens, W KV blocks.
"""

from dataclasses import dataclass

import numpy as np
import torch
from vllm.triton_utils import triton
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.input_batch import InputBuffers

from spec_worker.blocks import Layout
from spec_worker.kernels import fill_pass_kernel

NO_SLOT = -1  # vLLM's slot for "write no KV"


@dataclass(frozen=True, slots=True)
class Pass:
    """The blocks of one forward, as indices into larger tensors."""

    layout: Layout
    ids: torch.Tensor  # [*, B] int64
    starts: torch.Tensor  # [*] int64, positions of the anchors
    table: torch.Tensor  # [*, W] int32, KV block ids
    owned: torch.Tensor  # [*] int32, KV blocks that each request owns
    block: np.ndarray  # [R], rows of ids and starts
    row: np.ndarray  # [R], rows of the table
    slot: np.ndarray  # [R], rows of owned
    lora: np.ndarray  # [R], ids of the requests' user LoRAs; 0: none
    context: np.ndarray  # [R], an upper bound of the tokens before each block
    write: bool = True  # whether to write their KV

    def __post_init__(self) -> None:
        count = len(self.layout.lengths)
        if any(len(of_each) != count for of_each in (self.block, self.row, self.slot, self.lora, self.context)):
            raise ValueError(f"{count} blocks need as many rows of ids, KV blocks, LoRA ids and context lengths")

    def plan(self) -> np.ndarray:  # [5, R] int64
        """The kernel's input for each block: indices into the larger tensors, length, first row in the forward."""
        return np.array([self.block, self.row, self.slot, self.layout.lengths, self.layout.first], dtype=np.int64)

    def longest(self, requests: int, max_model_len: int) -> np.ndarray:  # [requests] int32
        """An upper bound of the tokens that each block's rows can see; 0 for padded requests."""
        seen = np.zeros(requests, dtype=np.int32)
        seen[: len(self.block)] = np.minimum(self.context + self.layout.lengths, max_model_len)
        return seen


class Inputs:
    """The buffers. Graph capture reads block tables and slots from here, as from vLLM's `BlockTables`."""

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
        """Write a pass, padded to this many requests and tokens."""
        fill_pass_kernel[(requests + 1,)](
            self.buffers.input_ids,
            self.buffers.positions,
            self.slots,
            self.buffers.query_start_loc,
            self.buffers.seq_lens,
            self.table,
            async_tensor_h2d(blocks.plan(), self.table.device),
            blocks.ids,
            blocks.starts,
            blocks.table,
            blocks.owned,
            len(blocks.layout.lengths),
            blocks.layout.tokens,
            requests,
            tokens,
            blocks.layout.block_length,
            self.table.shape[1],
            self.kv_block_size,
            self.max_model_len,
            WRITE=blocks.write,
            NO_SLOT=NO_SLOT,
            WIDTH=triton.next_power_of_2(blocks.layout.block_length),
        )
