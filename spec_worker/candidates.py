"""What a pass offers for each undecided position: the argmax of its row, or a draw.

Letters in shapes: M undecided positions of all requests, N state slots, K drafts a request, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample


@dataclass(frozen=True, slots=True)
class Candidates:
    """How candidates are found; the server's settings."""

    mask_token_id: int
    max_model_len: int
    draft_logits: torch.Tensor | None  # [N, K, V], kept for the verifier where linear mode samples
    use_fp64: bool

    def find(
        self,
        logits: torch.Tensor,  # [M, V]
        slots: np.ndarray,  # [M]
        place: np.ndarray,  # [M], which draft of its block
        starts: torch.Tensor,  # [R] int64, positions of the blocks' anchors
        block: np.ndarray,  # [M], which of those blocks
        count: int,  # of this pass, from 1
        sampling: Any,  # vLLM's SamplingStates
        diffusion: bool,
    ) -> torch.Tensor:  # [M] int64
        """The argmax, or a draw: in diffusion mode at a temperature, in linear mode where draft logits are kept."""
        own = logits[:, self.mask_token_id].clone()  # no candidate, but it keeps its share of the softmax
        logits[:, self.mask_token_id] = float("-inf")
        drawn = bool((sampling.temperature.np[slots] > 0).any()) if diffusion else self.draft_logits is not None
        if not drawn:
            found = logits.max(dim=-1).indices  # on CPUs several times as fast as argmax
        else:
            # A draw is keyed by the position of the token before, and by the pass.
            key = starts[async_tensor_h2d(block, logits.device)] + async_tensor_h2d(place, logits.device)
            key += (count - 1) * self.max_model_len
            draw = self._draw_denoised if diffusion else self._draw_draft
            found = draw(logits, slots, place, key, sampling)
        logits[:, self.mask_token_id] = own
        return found

    def _draw_draft(
        self, logits: torch.Tensor, slots: np.ndarray, place: np.ndarray, key: torch.Tensor, sampling: Any
    ) -> torch.Tensor:
        """By temperature alone; the verifier corrects for the rest."""
        return gumbel_sample(
            logits,
            async_tensor_h2d(slots, logits.device),
            sampling.temperature.gpu,
            sampling.seeds.gpu,
            key,
            apply_temperature=True,
            is_drafting=True,
            use_fp64=self.use_fp64,
            logits_cache=self.draft_logits,
            logits_cache_col=async_tensor_h2d(place.astype(np.int32), logits.device),
        )

    def _draw_denoised(
        self, logits: torch.Tensor, slots: np.ndarray, place: np.ndarray, key: torch.Tensor, sampling: Any
    ) -> torch.Tensor:
        """By temperature, top-k and top-p: it is taken as it is."""
        state = async_tensor_h2d(slots, logits.device)
        source = logits.float()
        source = source.clone() if source is logits else source
        sampling.apply_temperature(source, state, slots)
        source = sampling.apply_top_k_top_p(source, state, slots)
        return gumbel_sample(
            source,
            state,
            sampling.temperature.gpu,
            sampling.seeds.gpu,
            key,
            apply_temperature=False,
            is_drafting=True,
            use_fp64=self.use_fp64,
        )
