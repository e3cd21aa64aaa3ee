"""Turns a step's plan into groups of blocks that can share a forward, and starts the blocks.

The scheduler decides which requests draft, and how many tokens, see `scheduler.py`. Its plan travels with each step and
holds the number of drafts by request id. Requests that it does not name don't draft; if it names none, no draft pass
runs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from vllm.triton_utils import triton
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.input_batch import InputBatch

from spec_worker.blocks import Blocks
from spec_worker.kernels import lay_blocks_kernel
from spec_worker.slots import Slots
from vllm_nld.serving.modes import Mode

Plan = Mapping[str, int]  # draft tokens by request id, each at least 1: a chain's length, or a tree's nodes


@dataclass(frozen=True, slots=True)
class Group:
    """R requests of one mode whose blocks are filled together."""

    mode: Mode
    rows: np.ndarray  # [R], rows of the step's batch
    slots: np.ndarray  # [R], state slots
    lengths: np.ndarray  # [R], block lengths, including the anchor
    nodes: np.ndarray  # [R], nodes of the trees to grow; 0: a chain


def groups(plan: Plan | None, input_batch: InputBatch, slots: Slots, most: int) -> Iterator[Group]:
    """The drafting requests of a batch, grouped by mode, at most `most` per group.

    Without a plan, as in vLLM's warm-up, which has no scheduler, every request past its prompt drafts.
    """
    count = input_batch.num_reqs
    index = input_batch.idx_mapping_np[:count]
    end = (input_batch.num_computed_tokens_np + input_batch.num_scheduled_tokens)[:count]
    left = input_batch.prefill_len_np[:count] - end  # of the prompt, and of a preempted request's output
    grows = slots.tree_nodes[index] > 0
    if plan is None:
        drafts = np.where(left <= 0, np.where(grows, slots.tree_nodes[index], slots.drafts[index]), 0)
    else:
        drafts = np.array([plan.get(name, 0) for name in input_batch.req_ids[:count]], dtype=np.int64)
    slots.anchored[index] = (drafts > 0) & (left > 0)
    # A tree's depth does not depend on its nodes, unless the load decides how many rows a request may draft.
    free = grows & ~slots.by_load[index]
    lengths = np.where(free, slots.drafts[index], np.minimum(drafts, slots.drafts[index])) + 1
    nodes = np.where(grows, drafts, 0)
    for mode in np.unique(slots.mode[index[drafts > 0]]):
        rows = np.flatnonzero((drafts > 0) & (slots.mode[index] == mode))
        for first in range(0, len(rows), most):
            some = rows[first : first + most]
            yield Group(slots.policy(index[some[0]]), some, index[some], lengths[some], nodes[some])


@dataclass(frozen=True, slots=True)
class BlockBuilder:
    """Starts blocks, [anchor, mask ...], after the accepted tokens. Its fields are constants of the server."""

    mask_token_id: int
    block_length: int  # B
    max_model_len: int
    device: torch.device

    def build(self, group: Group, input_batch: InputBatch, slots: Slots, *verdict: torch.Tensor) -> Blocks:
        """A group's blocks. `verdict`: num_sampled, num_rejected, last_sampled, next_prefill_tokens of `propose`."""
        count = len(group.rows)
        starts = torch.empty(count, dtype=torch.int64, device=self.device)
        ids = torch.empty((count, self.block_length), dtype=torch.int64, device=self.device)
        masked = torch.empty((count, self.block_length - 1), dtype=torch.bool, device=self.device)
        lay_blocks_kernel[(count,)](
            starts,
            ids,
            masked,
            slots.count,
            *async_tensor_h2d(np.stack([group.rows, group.lengths]), self.device),
            input_batch.positions,
            input_batch.query_start_loc,
            input_batch.idx_mapping,
            *verdict,
            self.mask_token_id,
            self.block_length,
            self.max_model_len,
            COUNT=group.mode.takes_blocks,
            WIDTH=triton.next_power_of_2(self.block_length),
        )
        return Blocks(group.mode, group.rows, group.slots, group.lengths, group.nodes, starts, ids, masked)
