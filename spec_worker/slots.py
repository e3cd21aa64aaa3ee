"""What the worker knows about each request: one row per state slot, reset when a request gets the slot.

Parameters are on the CPU, so planning a step does not wait for the device. Taken blocks are on the device, where the
sampler reads them. N slots.
"""

from typing import Any

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_nld.serving.decoding import Decoding
from vllm_nld.serving.modes import MODES, Mode

STOP_IDS = 8  # at most this many stop tokens per request end a block's denoising early; all of them end the output
NO_LORA = 0  # vLLM's id of "no user LoRA"
NO_BLOCK = -1  # the request has not drafted yet


class Slots:
    """The decoding parameters of every state slot."""

    def __init__(self, slots: int, default: Decoding, drafts: int, device: torch.device) -> None:
        self._modes = tuple(MODES.values())
        self._index = {mode.name: index for index, mode in enumerate(self._modes)}
        ways = [(mode.drafting, mode.takes_blocks) for mode in self._modes]
        self._way = np.array([ways.index(way) for way in ways])  # the first mode that fills blocks in the same way
        self.mode = np.full(slots, self._index[default.mode], dtype=np.int64)  # rows of _modes
        self.takes_blocks = np.zeros(slots, dtype=bool)  # blocks are taken as drafted
        self.by_load = np.zeros(slots, dtype=bool)  # the scheduler chooses the number of rows for the load
        self.samples_first = np.zeros(slots, dtype=bool)  # drafts are compared with the AR pathway's own samples
        self.drafts = np.full(slots, default.drafts, dtype=np.int64)  # at most this many per step
        self.tree_nodes = np.full(slots, default.tree_nodes, dtype=np.int64)  # of a tree; 0: chains
        self.groups = np.full(slots, default.groups, dtype=np.int64)  # of masks, per step; 0: none
        self.threshold = np.full(slots, default.threshold, dtype=np.float64)
        self.passes = np.full(slots, default.passes, dtype=np.int64)  # at most this many draft passes per block
        self.lora = np.full(slots, NO_LORA, dtype=np.int64)  # the id of the request's user LoRA
        self.resumed = np.zeros(slots, dtype=bool)  # the request was preempted in the middle of its output
        self.stop_ids = np.full((slots, STOP_IDS), -1, dtype=np.int64)
        self.anchored = np.zeros(
            slots, dtype=bool
        )  # the block's anchor is a prefill token, computed together with the block
        self.drafted = np.full(slots, NO_BLOCK, dtype=np.int64)  # passes that the current block took
        self.tokens = torch.zeros(slots, max(drafts, 1), dtype=torch.int64, device=device)  # the block to take
        self.confidence = torch.ones(slots, max(drafts, 1), dtype=torch.float32, device=device)
        self.count = torch.zeros(slots, dtype=torch.int64, device=device)  # drafts in the block to take
        self._new: list[int] = []

    def assign(self, slot: int, decoding: Decoding, params: Any, lora: int = NO_LORA, resumed: bool = False) -> None:
        """Give a slot to a new request, or to one that comes back after preemption."""
        policy = decoding.policy
        self.mode[slot] = self._index[policy.name]
        self.takes_blocks[slot] = policy.takes_blocks
        self.by_load[slot] = policy.by_load
        self.samples_first[slot] = (policy.by_load or policy.grouped) and params.temperature > 0
        self.drafts[slot] = decoding.drafts
        self.tree_nodes[slot] = decoding.tree_nodes
        self.groups[slot] = decoding.groups
        self.threshold[slot] = decoding.threshold
        self.passes[slot] = decoding.passes
        self.lora[slot] = lora
        self.resumed[slot] = resumed
        self.stop_ids[slot] = -1
        if policy.takes_blocks:  # otherwise drafts continue past a stop token, because the verifier may reject it
            stops = sorted(params.stop_token_ids if params.ignore_eos else params.all_stop_token_ids)[:STOP_IDS]
            self.stop_ids[slot, : len(stops)] = stops
        self.anchored[slot] = False
        self.drafted[slot] = NO_BLOCK
        self._new.append(slot)

    def policy(self, slot: int) -> Mode:
        """The record of the mode of a slot's request."""
        return self._modes[self.mode[slot]]

    def ways(self, slots: np.ndarray) -> np.ndarray:
        """A number for each slot; blocks of slots with equal ones can be filled in the same passes."""
        return self._way[self.mode[slots]]

    def apply_staged_writes(self) -> None:
        """Clear the blocks of slots that have a new request."""
        if self._new:
            self.count[async_tensor_h2d(self._new, self.count.device)] = 0
            self._new.clear()

    def wanted(
        self,
        slot: torch.Tensor,  # [L]
        place: torch.Tensor,  # [L] int64, 0 for an anchor's row
    ) -> torch.Tensor:  # [L] int64
        """The token that the block to take has after each row of logits, or -1 if there is none."""
        token = self.tokens[slot, place.clamp(max=self.tokens.shape[1] - 1)]
        return torch.where(place < self.count[slot], token, -1)

    def keep(
        self,
        slots: np.ndarray,  # [R]
        tokens: torch.Tensor,  # [R, K] int64
        decided: torch.Tensor,  # [R, K] bool, in the last pass
        confidence: torch.Tensor,  # [R, K] float
    ) -> None:
        """Store what a pass decided in blocks that will be taken."""
        slot = async_tensor_h2d(slots, self.count.device)
        self.tokens[slot] = tokens
        self.confidence[slot] = torch.where(decided, confidence.float(), self.confidence[slot])
