"""What the worker knows of each request's decoding, by state slot: a row a request, rewritten when a slot is assigned.

The parameters live on the CPU, where a step is planned without asking the device; denoised blocks live on the device,
where the accept policy reads them. N slots.
"""

from typing import Any

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_nld.serving.modes import Decoding

STOP_IDS = 8  # stop tokens a request that end a block's denoising early; further ones end the output all the same


class Slots:
    """The decoding parameters of every state slot."""

    def __init__(self, slots: int, default: Decoding, drafts: int, device: torch.device) -> None:
        self.block_length = np.full(slots, default.block_length, dtype=np.int64)
        self.threshold = np.full(slots, default.threshold, dtype=np.float64)
        self.passes = np.full(slots, default.passes, dtype=np.int64)  # draft passes a block at most
        self.diffusion = np.zeros(slots, dtype=bool)
        self.resumed = np.zeros(slots, dtype=bool)  # preempted in the middle of its output
        self.stop_ids = np.full((slots, STOP_IDS), -1, dtype=np.int64)
        self.anchored = np.zeros(slots, dtype=bool)  # its block's anchor is a prefill token, computed with the block
        self.drafted = np.zeros(slots, dtype=np.int64)  # passes that its present block took
        self.tokens = torch.zeros(slots, max(drafts, 1), dtype=torch.int64, device=device)  # denoised blocks
        self.confidence = torch.ones(slots, max(drafts, 1), dtype=torch.float32, device=device)
        self.count = torch.zeros(slots, dtype=torch.int64, device=device)  # denoised tokens that are to be taken
        self._new: list[int] = []

    def assign(self, slot: int, decoding: Decoding, params: Any, resumed: bool) -> None:
        """A new request, or one that comes back after preemption, takes a slot."""
        self.block_length[slot] = decoding.block_length
        self.threshold[slot] = decoding.threshold
        self.passes[slot] = decoding.passes
        self.diffusion[slot] = decoding.mode == "diffusion"
        self.resumed[slot] = resumed
        self.stop_ids[slot] = -1
        if self.diffusion[slot]:  # drafts go on past a stop token: the verifier may disagree with it
            stops = sorted(params.stop_token_ids if params.ignore_eos else params.all_stop_token_ids)[:STOP_IDS]
            self.stop_ids[slot, : len(stops)] = stops
        self.anchored[slot] = False
        self.drafted[slot] = 0
        self._new.append(slot)

    def apply_staged_writes(self) -> None:
        """A new request has no block yet."""
        if self._new:
            self.count[async_tensor_h2d(self._new, self.count.device)] = 0
            self._new.clear()

    def denoised(
        self,
        slot: torch.Tensor,  # [L]
        place: torch.Tensor,  # [L] int64, 0 for an anchor's row
    ) -> torch.Tensor:  # [L] int64
        """The token that a denoised block has after each row of logits; -1 where there is none."""
        token = self.tokens[slot, place.clamp(max=self.tokens.shape[1] - 1)]
        return torch.where(place < self.count[slot], token, -1)

    def keep(
        self,
        slots: np.ndarray,  # [R]
        tokens: torch.Tensor,  # [R, K] int64
        decided: torch.Tensor,  # [R, K] bool, in the last pass
        confidence: torch.Tensor,  # [R, K] float
    ) -> None:
        """Take note of what a pass of denoising decided."""
        slot = async_tensor_h2d(slots, self.count.device)
        self.tokens[slot] = tokens
        self.confidence[slot] = torch.where(decided, confidence.float(), self.confidence[slot])
