"""How drafts are accepted, see `Mode.accept`.

"verify": vLLM's rejection sampler decides. Of trees, and of sampled requests whose block length depends on the load or
whose drafts depend on what was accepted before, it does not: there each row is sampled as AR would sample it, with the
noise of its position, and a draft is accepted if it is the sample. Greedy drafts are accepted as often either way, but
this way a seed gives AR's text whatever is drafted. Rows of masks are not verified, see `mask_groups.py`.

"take": the samplers see a distribution that contains only the drafted token, so it is accepted at any temperature. The
row after the block's last token is not changed: from it the token that starts the next block is sampled, with all
sampling parameters. If these rule a drafted token out (a grammar, bad words, the minimum length, the thinking budget),
it is not forced: the block ends there, and a token is sampled from the AR distribution instead.

Letters in shapes: R requests, L rows of logits, N state slots, K drafts, V vocabulary.
"""

import copy
from typing import Any, Self

import numpy as np
import torch
from vllm.config import SpeculativeConfig
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.sample.states import NO_LOGPROBS
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

from spec_worker.mask_groups import MaskGroups
from spec_worker.slots import Slots
from spec_worker.trees import Trees

RULED_OUT = 1e8  # below a row's best logit: vLLM forces a token by raising it to 1e9, or lowering all others to -inf


def force(
    logits: torch.Tensor,  # [L, V]
    tokens: torch.Tensor,  # [L] int64, the token that each row's block has next; -1: none
) -> torch.Tensor:  # [L, V], a new tensor
    """Mask all tokens of a row except the one that its block has next, unless the row rules that token out."""
    wanted = tokens.clamp(min=0)[:, None]
    possible = logits.gather(1, wanted) > logits.amax(dim=1, keepdim=True) - RULED_OUT
    forced = (tokens >= 0)[:, None] & possible
    out = logits.masked_fill(forced, float("-inf"))
    return out.scatter_(1, wanted, torch.where(forced, 0.0, out.gather(1, wanted)))


class ForcedBlockSampler(Sampler):
    """vLLM's sampler, with processed logits that force the tokens of taken blocks."""

    slots: Slots

    @classmethod
    def over(cls, sampler: Sampler, slots: Slots) -> Self:
        """A sampler that shares all state with the given one."""
        forced_sampler = copy.copy(sampler)
        forced_sampler.__class__ = cls
        forced_sampler.slots = slots  # type: ignore[attr-defined]  # it is a ForcedBlockSampler now
        return forced_sampler  # type: ignore[return-value]

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
        """As vLLM's, but blocks are forced before top-k and top-p, which could rule out a drafted token."""
        taking = bool(self.slots.takes_blocks[idx_mapping_np].any())
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
        processed = force(processed, self.slots.wanted(expanded_idx_mapping, expanded_local_pos.long()))
        if skip_top_k_top_p:
            return processed
        return self.sampling_states.apply_top_k_top_p(processed, expanded_idx_mapping, idx_mapping_np)


class AcceptingSampler(RejectionSampler):
    """vLLM's rejection sampler over a ForcedBlockSampler, and the walk along samples, see above."""

    def __init__(
        self,
        forced_sampler: ForcedBlockSampler,
        trees: Trees,
        groups: MaskGroups,
        speculative: SpeculativeConfig,
        device: torch.device,
    ) -> None:
        super().__init__(forced_sampler, speculative, device)
        self._slots = forced_sampler.slots
        self._trees, self._groups = trees, groups
        self._order: torch.Tensor | None = None  # rows of the chunk, each tree's path first

    def __call__(
        self,
        logits: torch.Tensor,  # [L, V]
        input_batch: InputBatch,
        draft_logits: torch.Tensor | None = None,
        invalid_drafts: torch.Tensor | None = None,
    ) -> SamplerOutput:
        output = super().__call__(logits, input_batch, draft_logits, invalid_drafts)
        if (masks := self._groups.masks) is not None:  # they count as rejected
            output.num_rejected.add_(async_tensor_h2d(masks, output.num_rejected.device))
        if output.logprobs_tensors is not None and self._slots.takes_blocks[input_batch.idx_mapping_np].any():
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
        """Restore drafts that vLLM takes for placeholders, and leave trees to the walk.

        vLLM drops drafts after a prefill token, and a resumed request's anchor is one. The rows of a tree have the
        positions of their depths, not those of a sequence.
        """
        slot = input_batch.idx_mapping_np
        anchored, trees = self._slots.anchored[slot], self._trees.stands[slot]
        if anchored.any() or trees.any():
            row, place = request_rows(input_batch)
            ids = input_batch.input_ids[input_batch.logits_indices].to(draft_sampled)
            known, walked = async_tensor_h2d(np.stack([(anchored | trees)[row] & (place > 0), trees[row]]), ids.device)
            draft_sampled = torch.where(known, ids, draft_sampled)
            verify_draft_sampled = torch.where(known, ids, verify_draft_sampled).masked_fill(walked, -1)
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

    def _verify(
        self,
        logits: torch.Tensor,  # [L, V]
        draft_logits: torch.Tensor | None,
        draft_sampled: torch.Tensor,  # [L]
        pos: torch.Tensor,  # [L]
        cu_num_logits: torch.Tensor,  # [R + 1]
        idx_mapping: torch.Tensor,  # [R]
        idx_mapping_np: np.ndarray,  # [R]
        expanded_idx_mapping: torch.Tensor,  # [L]
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As vLLM's; then walk along the samples of trees, none of whose drafts it has accepted, and of some chains."""
        processed, sampled, num_sampled = super()._verify(
            logits,
            draft_logits,
            draft_sampled,
            pos,
            cu_num_logits,
            idx_mapping,
            idx_mapping_np,
            expanded_idx_mapping,
            *args,
            **kwargs,
        )
        self._order = None
        walked = self._trees.stands[idx_mapping_np]
        if draft_logits is None:  # otherwise drafts are samples themselves, and acceptance depends on their probability
            walked |= self._slots.samples_first[idx_mapping_np]
        requests = np.flatnonzero(walked)
        if len(requests):
            state = self.sampler.sampling_states
            drawn = gumbel_sample(
                processed,
                expanded_idx_mapping,
                state.temperature.gpu,
                state.seeds.gpu,
                pos,
                apply_temperature=False,
                is_drafting=False,
                use_fp64=self.sampler.use_fp64_gumbel,
            )
            self._order = self._trees.walk(
                requests, idx_mapping_np[requests], drawn, draft_sampled, cu_num_logits, sampled, num_sampled
            )
        return processed, sampled, num_sampled

    def _get_logprobs_tensors(
        self,
        sampled: torch.Tensor,  # [R, K + 1]
        num_sampled: torch.Tensor,  # [R]
        logits: torch.Tensor,  # [L, V]
        cu_num_logits: torch.Tensor,  # [R + 1]
        cu_num_logits_np: np.ndarray,  # [R + 1]
        max_num_logprobs: int,
    ) -> LogprobsTensors | None:
        """As vLLM's, which takes a request's rows in the order of its samples."""
        if self._order is not None and max_num_logprobs != NO_LOGPROBS:
            logits = logits[self._order]
        return super()._get_logprobs_tensors(
            sampled, num_sampled, logits, cu_num_logits, cu_num_logits_np, max_num_logprobs
        )

    def _report_confidence(self, input_batch: InputBatch, output: SamplerOutput) -> None:
        """Report the log probability at which a taken token was committed. Alternatives stay the AR pathway's."""
        if not self.sampler.logprobs_mode.endswith("logprobs"):
            return
        rows, places = request_rows(input_batch)
        device = output.sampled_token_ids.device
        row, place = async_tensor_h2d(rows, device), async_tensor_h2d(places, device)
        slot = input_batch.expanded_idx_mapping
        taken = (place < output.num_sampled[row]) & (
            self._slots.wanted(slot, place) == output.sampled_token_ids[row, place]
        )
        committed = self._slots.confidence[slot, place.clamp(max=self._slots.confidence.shape[1] - 1)].log()
        column = output.logprobs_tensors.logprobs[:, 0]  # type: ignore[union-attr]  # the caller asked
        column.copy_(torch.where(taken, committed.to(column), column))


def request_rows(input_batch: InputBatch) -> tuple[np.ndarray, np.ndarray]:
    """Each row's request in the batch, and its place in the request's block. Both [L], on the CPU."""
    first = input_batch.cu_num_logits_np[:-1]
    counts = np.diff(input_batch.cu_num_logits_np)
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(len(row)) - first[row]
