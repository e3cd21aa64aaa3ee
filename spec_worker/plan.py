"""Turns a step's plan into groups of blocks that can share a forward, and starts the blocks.

The scheduler decides which requests draft, and how many tokens, see `scheduler.py`. Its plan travels with each step and
holds the number of drafts by request id. Requests that it does not name don't draft; if it names none, no draft pass
runs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from vllm.triton_utils import triton
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.input_batch import InputBatch

from spec_worker.blocks import Blocks
from spec_worker.kernels import lay_blocks_kernel
from spec_worker.slots import Slots
from vllm_nld.serving.modes import Mode

Plan = Mapping[str, int]  # draft tokens by request id, each at least 1: a chain and its groups of masks, or a tree


@dataclass(frozen=True, slots=True)
class Planned:
    """The D requests of a batch that draft."""

    rows: np.ndarray  # [D], rows of the step's batch
    slots: np.ndarray  # [D], state slots
    drafts: np.ndarray  # [D], draft tokens
    at_prompt: np.ndarray  # [D] bool, the last token of the prompt, or of a preempted request's output, is yet to come

    def where(self, chosen: np.ndarray) -> Self:  # [D] bool
        """Some of them."""
        return replace(
            self,
            rows=self.rows[chosen],
            slots=self.slots[chosen],
            drafts=self.drafts[chosen],
            at_prompt=self.at_prompt[chosen],
        )


@dataclass(frozen=True, slots=True)
class Group:
    """R requests whose blocks are filled together. Their modes differ in what happens to the blocks later at most."""

    mode: Mode  # of one of them
    rows: np.ndarray  # [R], rows of the step's batch
    slots: np.ndarray  # [R], state slots
    lengths: np.ndarray  # [R], block lengths, including the anchor
    nodes: np.ndarray  # [R], nodes of the trees to grow; 0: a chain
    mask_groups: np.ndarray  # [R], groups of masks after the blocks


def planned(plan: Plan | None, input_batch: InputBatch, slots: Slots) -> Planned:
    """The drafting requests of a batch.

    Without a plan, as in vLLM's warm-up, which has no scheduler, every request past its prompt drafts.
    """
    count = input_batch.num_reqs
    index = input_batch.idx_mapping_np[:count]
    end = (input_batch.num_computed_tokens_np + input_batch.num_scheduled_tokens)[:count]
    left = input_batch.prefill_len_np[:count] - end  # of the prompt, and of a preempted request's output
    if plan is None:
        drafts = np.where(
            left <= 0, np.where(slots.tree_nodes[index] > 0, slots.tree_nodes[index], slots.drafts[index]), 0
        )
    else:
        drafts = np.array([plan.get(name, 0) for name in input_batch.req_ids[:count]], dtype=np.int64)
    slots.anchored[index] = (drafts > 0) & (left > 0) & slots.takes_blocks[index]
    rows = np.flatnonzero(drafts)
    return Planned(rows, index[rows], drafts[rows], left[rows] > 0)


def groups(asked: Planned, slots: Slots, most: int) -> Iterator[Group]:
    """The requests, grouped by how their blocks are filled, at most `most` per group."""
    grows = slots.tree_nodes[asked.slots] > 0
    chain = np.minimum(asked.drafts, slots.drafts[asked.slots])
    # A tree's depth does not depend on its nodes, unless the load decides how many rows a request may draft.
    lengths = np.where(grows & ~slots.by_load[asked.slots], slots.drafts[asked.slots], chain) + 1
    nodes = np.where(grows, asked.drafts, 0)
    mask_groups = np.where(slots.groups[asked.slots] > 0, (asked.drafts - chain) // lengths, 0)
    ways = slots.ways(asked.slots)
    for way in np.unique(ways):
        alike = np.flatnonzero(ways == way)
        for first in range(0, len(alike), most):
            some = alike[first : first + most]
            yield Group(
                slots.policy(asked.slots[some[0]]),
                asked.rows[some],
                asked.slots[some],
                lengths[some],
                nodes[some],
                mask_groups[some],
            )


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
        return Blocks(
            group.mode, group.rows, group.slots, group.lengths, group.nodes, group.mask_groups, starts, ids, masked
        )
