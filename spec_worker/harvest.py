"""Takes the next blocks from groups of masks, which the forward that verified the previous blocks has computed.

Vocabulary logits are computed for the group that the verdict chose, no other. Letters in shapes: D requests that draft,
R of them with a group, B tokens per block, K = B - 1, T tokens of the target's forward.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.distributed import get_tp_group
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.input_batch import InputBatch

from spec_worker.blocks import Blocks
from spec_worker.candidates import Candidates, Undecided
from spec_worker.mask_groups import MaskGroups, likeliest_ends
from spec_worker.plan import Group, Planned
from spec_worker.slots import Slots


@dataclass(frozen=True, slots=True)
class Harvest:
    """Finds out who has a group, and reads it. Its fields are constants of the server."""

    candidates: Candidates
    slots: Slots
    groups: MaskGroups
    sampling: Any  # vLLM's SamplingStates
    block_length: int  # B

    def ready(self, asked: Planned, num_sampled: torch.Tensor) -> np.ndarray:  # [S] int32 -> [D] bool
        """Which requests have a group that continues what was accepted.

        Looks at the device, once, only if some have groups for some numbers of accepted drafts and not for all.
        """
        stands, chain = self.groups.stands[asked.slots], self.groups.chain[asked.slots]
        if ((stands == 0) | (stands == chain + 1)).all():
            return stands > 0
        _, fits = self.groups.chosen(asked.slots, num_sampled[async_tensor_h2d(asked.rows, num_sampled.device)])
        return agreed(fits).cpu().numpy()

    def take(
        self,
        group: Group,
        input_batch: InputBatch,
        hidden: torch.Tensor,  # [T, hidden]
        num_sampled: torch.Tensor,  # [S] int32
    ) -> Blocks:
        """The blocks of requests that are ready, without their anchors."""
        count, device, slots = len(group.rows), hidden.device, group.slots
        blocks = Blocks(
            group.mode,
            group.rows,
            slots,
            group.lengths,
            group.nodes,
            group.mask_groups,
            starts=torch.zeros(count, dtype=torch.int64, device=device),
            ids=torch.full((count, self.block_length), self.candidates.mask_token_id, device=device),
            masked=torch.zeros(count, self.block_length - 1, dtype=torch.bool, device=device),
        )
        chosen, _ = self.groups.chosen(slots, num_sampled[async_tensor_h2d(group.rows, device)])
        block, place = np.nonzero(blocks.open_places())
        first = input_batch.query_start_loc_np[group.rows] + 1 + self.groups.chain[slots]
        plan = np.stack([block, place, first[block] + 1 + place, self.groups.size[slots][block]])
        block_at, place_at, row, size = async_tensor_h2d(plan.astype(np.int64), device)
        drafting = group.mode.drafting
        assert drafting is not None, "only modes that draft are planned"
        undecided = Undecided(slots[block], block, place, blocks.starts, 1, drafting, ranked=False)
        certain = not blocks.chooses_groups
        found = self.candidates.find(hidden[row + chosen[block_at] * size], undecided, self.sampling, certain)
        blocks.ids[block_at, place_at + 1] = found.tokens
        if not certain:
            blocks.certainty = torch.zeros(count, self.block_length - 1, dtype=torch.float64, device=device)
            blocks.certainty[block_at, place_at] = found.certainty
        self.slots.drafted[slots] = 0
        return blocks

    def sow(self, blocks: Blocks) -> None:
        """Decide where the groups of masks after these blocks end."""
        some = np.flatnonzero(self.slots.groups[blocks.slots])
        if not len(some):
            return
        slots, chain, most = blocks.slots[some], blocks.lengths[some] - 1, max(int(blocks.groups.max()), 1)
        device = blocks.ids.device
        if blocks.certainty is None:
            ends = torch.arange(most, device=device).expand(len(some), -1)
        else:
            drafted = async_tensor_h2d(blocks.open_places()[some], device)
            ends = likeliest_ends(blocks.certainty[async_tensor_h2d(some, device)] * drafted, most)
        self.groups.lay(slots, chain, blocks.groups[some], self.slots.drafts[slots] + 1, ends)

    def sow_after_prompts(self, asked: Planned) -> None:
        """One group after the last token of each request's prompt, which the next step computes."""
        ends = torch.zeros(len(asked.slots), 1, dtype=torch.int64, device=self.groups.ends.device)
        size = self.slots.drafts[asked.slots] + 1
        self.groups.lay(asked.slots, np.zeros_like(size), np.ones_like(size), size, ends)


def agreed(flags: torch.Tensor) -> torch.Tensor:  # [D] bool
    """The flags of the first tensor-parallel rank on every rank.

    If ranks disagreed once, because of a rounding error, they would run different draft passes and wait for each other
    forever.
    """
    group = get_tp_group()
    return flags if group.world_size == 1 else group.broadcast(flags.int(), src=0).bool()
