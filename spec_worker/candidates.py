"""Finds a candidate for each undecided position, the argmax of its row or a sample, and its probability.

Rows are processed in chunks, because each one takes several fp32 copies of the vocabulary. Letters in shapes: M
undecided positions of all requests, N state slots, R blocks, K drafts per request, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample

from spec_worker.commit import probability
from spec_worker.trees import Ranked, rank
from vllm_nld.serving.modes import Drafting

CHUNK_BYTES = 2**28  # size of one fp32 copy of a chunk's logits


@dataclass(frozen=True, slots=True)
class Undecided:
    """The M undecided positions of a pass."""

    slot: np.ndarray  # [M], state slots of their requests
    block: np.ndarray  # [M], index of the block
    place: np.ndarray  # [M], index of the draft in its block
    starts: torch.Tensor  # [R] int64, positions of the blocks' anchors
    count: int  # number of the pass, from 1
    drafting: Drafting
    ranked: bool  # whether the likeliest tokens are wanted, for trees

    def part(self, first: int, end: int) -> "Undecided":
        """The positions from `first` to before `end`."""
        some = slice(first, end)
        return replace(self, slot=self.slot[some], block=self.block[some], place=self.place[some])


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate for each undecided position."""

    tokens: torch.Tensor  # [M] int64
    certainty: torch.Tensor  # [M] float64 in [0, 1]
    ranked: Ranked | None  # of M positions

    @classmethod
    def joined(cls, parts: Sequence["Found"]) -> "Found":
        """The candidates of several chunks, one after another."""
        if len(parts) == 1:
            return parts[0]
        ranked = [part.ranked for part in parts if part.ranked is not None]
        return cls(
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.certainty for part in parts]),
            Ranked(torch.cat([r.tokens for r in ranked]), torch.cat([r.log_probs for r in ranked])) if ranked else None,
        )


@dataclass(frozen=True, slots=True)
class Candidates:
    """Finds candidates. Its fields are constants of the server."""

    model: Any  # the served model, whose compute_logits takes [M, hidden] to [M, V]
    vocab_size: int
    mask_token_id: int
    max_model_len: int
    draft_logits: torch.Tensor | None  # [N, K, V], kept for the verifier if drafts are sampled
    use_fp64: bool

    @property
    def chunk(self) -> int:
        """The number of rows to process at a time."""
        return max(1, CHUNK_BYTES // (4 * self.vocab_size))

    def find(
        self,
        hidden: torch.Tensor,  # [M, hidden]
        undecided: Undecided,
        sampling: Any,  # vLLM's SamplingStates
        certain: bool = False,  # count every candidate as certain, which saves the softmax
    ) -> Found:
        """A candidate for each position and its probability."""
        parts = []
        for first in range(0, len(hidden), self.chunk):
            end = min(first + self.chunk, len(hidden))
            logits = self.model.compute_logits(hidden[first:end])
            parts.append(self._find(logits, undecided.part(first, end), sampling, certain))
        return Found.joined(parts)

    def profile(self, hidden: torch.Tensor) -> None:
        """Allocate what the largest chunk needs, for vLLM's memory profile: logits, an fp32 copy, probabilities."""
        logits = self.model.compute_logits(hidden[: self.chunk])
        drawn_from = logits.float().clone()
        probability(logits, drawn_from.max(dim=-1).indices)

    def _find(self, logits: torch.Tensor, undecided: Undecided, sampling: Any, certain: bool) -> Found:
        own = logits[:, self.mask_token_id].clone()  # never a candidate, but it keeps its share of the softmax
        logits[:, self.mask_token_id] = float("-inf")
        final = undecided.drafting.sampling == "final"
        drawn = (sampling.temperature.np[undecided.slot] > 0).any() if final else self.draft_logits is not None
        if not drawn:
            found = logits.max(dim=-1).indices  # on CPUs several times as fast as argmax
        else:
            found = (self._draw_final if final else self._draw_draft)(logits, undecided, sampling)
        ranked = rank(logits) if undecided.ranked else None
        logits[:, self.mask_token_id] = own
        sure = torch.ones_like(found, dtype=torch.float64) if certain else probability(logits, found)
        return Found(found, sure, ranked)

    def _key(self, undecided: Undecided) -> torch.Tensor:  # [M] int64
        """What a sample depends on besides the seed: the position of the preceding token, and the pass."""
        device = undecided.starts.device
        key = undecided.starts[async_tensor_h2d(undecided.block, device)] + async_tensor_h2d(undecided.place, device)
        return key + (undecided.count - 1) * self.max_model_len

    def _draw_draft(self, logits: torch.Tensor, undecided: Undecided, sampling: Any) -> torch.Tensor:
        """Sample by temperature only; the verifier corrects for the rest."""
        return gumbel_sample(
            logits,
            async_tensor_h2d(undecided.slot, logits.device),
            sampling.temperature.gpu,
            sampling.seeds.gpu,
            self._key(undecided),
            apply_temperature=True,
            is_drafting=True,
            use_fp64=self.use_fp64,
            logits_cache=self.draft_logits,
            logits_cache_col=async_tensor_h2d(undecided.place.astype(np.int32), logits.device),
        )

    def _draw_final(self, logits: torch.Tensor, undecided: Undecided, sampling: Any) -> torch.Tensor:
        """Sample by temperature, top-k and top-p, because the token is taken as it is."""
        state = async_tensor_h2d(undecided.slot, logits.device)
        source = logits.float()
        source = source.clone() if source is logits else source
        sampling.apply_temperature(source, state, undecided.slot)
        source = sampling.apply_top_k_top_p(source, state, undecided.slot)
        return gumbel_sample(
            source,
            state,
            sampling.temperature.gpu,
            sampling.seeds.gpu,
            self._key(undecided),
            apply_temperature=False,
            is_drafting=True,
            use_fp64=self.use_fp64,
        )

    def record_taken(
        self,
        slots: np.ndarray,  # [R]
        tokens: torch.Tensor,  # [R, K] int64
    ) -> None:
        """Store draft logits for taken blocks in which each token is certain.

        If a request rules a token out, the sampler resamples from the part of the target distribution that exceeds the
        draft distribution, so no draft logits of the slot's previous request may remain.
        """
        if self.draft_logits is None:
            return
        slot = async_tensor_h2d(slots, tokens.device)[:, None]
        place = torch.arange(tokens.shape[1], device=tokens.device)
        self.draft_logits[slot[:, 0]] = float("-inf")
        self.draft_logits[slot, place, tokens] = 0.0
