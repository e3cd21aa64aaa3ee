"""Fills blocks by bidirectional passes, until no position is masked or a stop token has no mask before it.

Without a threshold one pass decides everything. With one, each pass commits what is probable enough, and later passes
leave out blocks that are done. Letters in shapes: A blocks in a pass, R blocks, at most K drafts per block.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.distributed import get_tp_group
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.input_batch import InputBatch

from spec_worker.blocks import Blocks, Layout
from spec_worker.candidates import Candidates, Undecided
from spec_worker.commit import commit, stopped
from spec_worker.inputs import Pass
from spec_worker.slots import Slots
from spec_worker.trees import Ranked, Trees


@dataclass(frozen=True, slots=True)
class Filler:
    """Fills blocks that are filled in the same way."""

    model: Any  # the served model
    run: Callable[[Pass], torch.Tensor]  # a forward over some blocks -> [T, hidden]
    candidates: Candidates
    slots: Slots
    sampling: Any  # vLLM's SamplingStates
    tables: Any  # vLLM's BlockTables
    trees: Trees
    reports: bool = False  # whether blocks get the probability of each draft

    def fill(self, blocks: Blocks, input_batch: InputBatch, write: bool) -> None:
        """Decide every draft of the blocks. `write`: whether passes write KV."""
        drafting = blocks.mode.drafting
        assert drafting is not None, "only modes that draft are planned"
        most, taken = self.slots.passes[blocks.slots], blocks.mode.takes_blocks
        if self.reports or blocks.chooses_groups:
            blocks.certainty = torch.ones_like(blocks.masked, dtype=torch.float64)
        with self.model.drafting() if drafting.adapter else contextlib.nullcontext():
            if not taken and (most == 1).all():
                self._fill_at_once(blocks, input_batch, write)
            else:
                self._fill_by_threshold(blocks, most, input_batch, write)
        if taken:
            self.candidates.record_taken(blocks.slots, blocks.ids[:, 1:])

    def _fill_at_once(self, blocks: Blocks, input_batch: InputBatch, write: bool) -> None:
        """A single pass decides everything, whatever its probability, so nothing waits for the device."""
        active = np.arange(len(blocks.rows))
        places, quick = blocks.open_places(), blocks.certainty is None
        found, certainty = self._pass(blocks, active, places, input_batch, 1, write, certain=quick)
        blocks.ids[:, 1:] = torch.where(blocks.masked, found, blocks.ids[:, 1:])
        if blocks.certainty is not None:
            blocks.certainty = certainty
        self.slots.drafted[blocks.slots] = 1

    def _fill_by_threshold(self, blocks: Blocks, most: np.ndarray, input_batch: InputBatch, write: bool) -> None:
        active, count, places = np.arange(len(blocks.rows)), 0, blocks.open_places()
        while len(active):
            count += 1
            found, certainty = agree(*self._pass(blocks, active, places, input_batch, count, write))
            self._decide(blocks, active, found, certainty, count)
            active = active[most[active] > count]
            if len(active):
                places = blocks.masked.cpu().numpy()  # the one look at the device per pass
                active = active[places[active].any(axis=1)]

    def _decide(
        self,
        blocks: Blocks,
        active: np.ndarray,  # [A], blocks that were in the pass
        found: torch.Tensor,  # [A, K] int64
        certainty: torch.Tensor,  # [A, K] float64
        count: int,
    ) -> None:
        """Commit what is probable enough; in a block's last pass, all that is left."""
        slots = self.slots
        state = blocks.slots[active]
        threshold = np.where(slots.passes[state] == count, 0.0, slots.threshold[state])
        stop_ids = async_tensor_h2d(slots.stop_ids[state], found.device)
        chosen = async_tensor_h2d(active, found.device)
        masked, ids = blocks.masked[chosen], blocks.ids[chosen]
        decided = commit(certainty, masked, async_tensor_h2d(threshold, found.device))
        ids[:, 1:] = torch.where(decided, found, ids[:, 1:])
        masked &= ~decided
        masked &= ~stopped(ids[:, 1:], masked, stop_ids)[:, None]
        blocks.ids[chosen], blocks.masked[chosen] = ids, masked
        if blocks.certainty is not None:
            blocks.certainty[chosen] = torch.where(decided, certainty, blocks.certainty[chosen])
        slots.drafted[state] = count
        if blocks.mode.takes_blocks:
            slots.keep(state, ids[:, 1:], decided, certainty)

    def _pass(
        self,
        blocks: Blocks,
        active: np.ndarray,  # [A], blocks that are not done
        places: np.ndarray,  # [R, K] bool, their undecided positions
        input_batch: InputBatch,
        count: int,
        write: bool,
        certain: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [A, K] int64 and float64
        """Run one forward: a candidate for each undecided position, and its probability."""
        given = self._gather(blocks, active, input_batch, write)
        hidden = self.run(given)
        block, place = np.nonzero(places[active])
        rows = async_tensor_h2d(given.layout.rows(block, place + 1), hidden.device)
        assert blocks.mode.drafting is not None
        grows = count == 1 and bool(blocks.nodes.any())
        undecided = Undecided(
            blocks.slots[active][block], active[block], place, blocks.starts, count, blocks.mode.drafting, grows
        )
        candidates = self.candidates.find(hidden[rows], undecided, self.sampling, certain)
        if candidates.ranked is not None:
            self._grow(blocks, candidates.ranked)
        found, certainty = candidates.tokens, candidates.certainty
        shape = (len(active), places.shape[1])
        if len(found) == shape[0] * shape[1]:  # nothing is decided yet
            return found.view(shape), certainty.view(shape)
        where = async_tensor_h2d(np.ravel_multi_index((block, place), shape), hidden.device)
        every = torch.zeros(shape, dtype=torch.int64, device=hidden.device)
        every.view(-1)[where] = found
        sure = torch.ones(shape, dtype=torch.float64, device=hidden.device)
        sure.view(-1)[where] = certainty
        return every, sure

    def _grow(self, blocks: Blocks, ranked: Ranked) -> None:
        """Grow trees from the first pass, in which no position is decided yet. A tree's request has no other pass."""
        first = (blocks.lengths - 1).cumsum() - (blocks.lengths - 1)
        trees = np.flatnonzero(blocks.nodes)
        self.trees.grow(
            blocks.slots[trees], blocks.nodes[trees], trees, blocks.lengths[trees], blocks.starts, first[trees], ranked
        )

    def _gather(self, blocks: Blocks, active: np.ndarray, input_batch: InputBatch, write: bool) -> Pass:
        """The input of a pass over the active blocks."""
        rows = blocks.rows[active]
        return Pass(
            layout=Layout(blocks.lengths[active], blocks.ids.shape[1]),
            ids=blocks.ids,
            starts=blocks.starts,
            table=self.tables.input_block_tables[0],
            owned=self.tables.num_blocks.gpu[0],
            block=active,
            row=rows,
            slot=blocks.slots[active],
            lora=self.slots.lora[blocks.slots[active]],
            context=input_batch.seq_lens_cpu_upper_bound.numpy()[rows],
            write=write,
        )


def agree(
    found: torch.Tensor,  # [A, K] int64
    certainty: torch.Tensor,  # [A, K] float64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Use the candidates of the first tensor-parallel rank on every rank.

    Each rank looks at its own device to see whether another pass is needed. If ranks disagreed once, because of a
    rounding error, they would wait for each other forever.
    """
    group = get_tp_group()
    if group.world_size == 1:
        return found, certainty
    both = group.broadcast(torch.stack([found.double(), certainty]), src=0)  # ids are exact in float64
    return both[0].long(), both[1]
