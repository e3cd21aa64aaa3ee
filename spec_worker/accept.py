"""How a target forward's verdict on a block is read: the accept policies.

In linear mode vLLM's rejection sampler decides. In diffusion mode the block is taken as denoised: where a request's
next token is denoised, the distribution that the samplers see is that token's alone. It is then accepted at any
temperature, and the row after the block's last token, which is left as it is, samples the token that seeds the next
block, with all of vLLM's sampling parameters. A token that those parameters rule out (a grammar, bad words, too few
tokens for an EOS, a used-up thinking budget) is not forced: the block ends there, and its place is sampled.

Letters in shapes: R requests, L rows of logits, N state slots, K drafts, V vocabulary.
"""

import copy
from typing import Any, Self

import numpy as np
import torch
from vllm.config import SpeculativeConfig
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

from spec_worker.slots import Slots

RULED_OUT = 1e8  # below a row's best logit: vLLM forces a token by raising it to 1e9, or lowering all others to -inf


def force(
    logits: torch.Tensor,  # [L, V]
    drafts: torch.Tensor,  # [L] int64, the token that each row's request wants next; -1: none
) -> torch.Tensor:  # [L, V], a new tensor
    """Leave a row with a wanted token only that one, unless the row rules it out."""
    wanted = drafts.clamp(min=0)[:, None]
    possible = logits.gather(1, wanted) > logits.amax(dim=1, keepdim=True) - RULED_OUT
    forced = (drafts >= 0)[:, None] & possible
    out = logits.masked_fill(forced, float("-inf"))
    return out.scatter_(1, wanted, torch.where(forced, 0.0, out.gather(1, wanted)))


class BlockTaker(Sampler):
    """vLLM's sampler, whose processed logits ask for the blocks that are to be taken."""

    slots: Slots

    @classmethod
    def over(cls, sampler: Sampler, slots: Slots) -> Self:
        """A sampler that shares all state with the given one."""
        taker = copy.copy(sampler)
        taker.__class__ = cls
        taker.slots = slots  # type: ignore[attr-defined]  # it is a BlockTaker now
        return taker  # type: ignore[return-value]

    def apply_sampling_params(
        self,
        logits: torch.Tensor,  # [L, V]
        expanded_idx_mapping: torch.Tensor,  # [L]
        idx_mapping: torch.Tensor,  # [R]
        idx_mapping_np: np.ndarray,  # [R]
        pos: torch.Tensor,  # [L]
        input_ids: torch.Tensor,  # [L]
        expanded_local_pos: torch.Tensor,  # [L]
        seq_lens_upper_bound_np: np.ndarray,  # [R]
        skip_top_k_top_p: bool = False,
    ) -> torch.Tensor:  # [L, V]
        """As vLLM's. What the parameters rule out is known before top-k and top-p, which rule out more."""
        taking = bool(self.slots.diffusion[idx_mapping_np].any())
        processed = super().apply_sampling_params(
            logits,
            expanded_idx_mapping,
            idx_mapping,
            idx_mapping_np,
            pos,
            input_ids,
            expanded_local_pos,
            seq_lens_upper_bound_np,
            skip_top_k_top_p=skip_top_k_top_p or taking,
        )
        if not taking:
            return processed
        processed = force(processed, self.slots.denoised(expanded_idx_mapping, expanded_local_pos.long()))
        if skip_top_k_top_p:
            return processed
        return self.sampling_states.apply_top_k_top_p(processed, expanded_idx_mapping, idx_mapping_np)


class AcceptingSampler(RejectionSampler):
    """vLLM's rejection sampler over a BlockTaker."""

    def __init__(self, taker: BlockTaker, speculative: SpeculativeConfig, device: torch.device) -> None:
        super().__init__(taker, speculative, device)
        self._slots = taker.slots

    def __call__(
        self,
        logits: torch.Tensor,  # [L, V]
        input_batch: InputBatch,
        draft_logits: torch.Tensor | None = None,
        invalid_drafts: torch.Tensor | None = None,
    ) -> SamplerOutput:
        output = super().__call__(logits, input_batch, draft_logits, invalid_drafts)
        if output.logprobs_tensors is not None and self._slots.diffusion[input_batch.idx_mapping_np].any():
            self._report_confidence(input_batch, output)
        return output

    def _verify_in_chunks(
        self,
        logits: torch.Tensor,
        input_batch: InputBatch,
        draft_logits: torch.Tensor | None,
        draft_sampled: torch.Tensor,  # [L]
        pos: torch.Tensor,
        max_chunk_logits: int,
        max_num_logprobs: int,
        verify_draft_sampled: torch.Tensor | None = None,  # [L]
    ) -> tuple[Any, ...]:
        """vLLM drops drafts whose anchor is a prefill token; a resumed request's first block has such an anchor."""
        if self._slots.anchored[input_batch.idx_mapping_np].any():
            draft_sampled = self._with_anchored_blocks(input_batch, draft_sampled)
            verify_draft_sampled = self._with_anchored_blocks(input_batch, verify_draft_sampled)
        return super()._verify_in_chunks(
            logits,
            input_batch,
            draft_logits,
            draft_sampled,
            pos,
            max_chunk_logits,
            max_num_logprobs,
            verify_draft_sampled,
        )

    def _with_anchored_blocks(self, input_batch: InputBatch, drafts: torch.Tensor) -> torch.Tensor:
        """The drafts again where vLLM put -1 for a block that we know to be there."""
        row, place = request_rows(input_batch)
        known = self._slots.anchored[input_batch.idx_mapping_np][row] & (place > 0)
        ids = input_batch.input_ids[input_batch.logits_indices].to(drafts)
        return torch.where(async_tensor_h2d(known, drafts.device), ids, drafts)

    def _report_confidence(self, input_batch: InputBatch, output: SamplerOutput) -> None:
        """A denoised token's log probability is that at which it was committed; alternatives are the AR pathway's."""
        if not self.sampler.logprobs_mode.endswith("logprobs"):
            return
        rows, places = request_rows(input_batch)
        device = output.sampled_token_ids.device
        row, place = async_tensor_h2d(rows, device), async_tensor_h2d(places, device)
        slot = input_batch.expanded_idx_mapping
        taken = (place < output.num_sampled[row]) & (
            self._slots.denoised(slot, place) == output.sampled_token_ids[row, place]
        )
        committed = self._slots.confidence[slot, place.clamp(max=self._slots.confidence.shape[1] - 1)].log()
        column = output.logprobs_tensors.logprobs[:, 0]  # type: ignore[union-attr]  # the caller asked
        column.copy_(torch.where(taken, committed.to(column), column))


def request_rows(input_batch: InputBatch) -> tuple[np.ndarray, np.ndarray]:
    """Each row's request in the batch and its place in that request's block, both [L], known on the CPU."""
    first = input_batch.cu_num_logits_np[:-1]
    counts = np.diff(input_batch.cu_num_logits_np)
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(len(row)) - first[row]
