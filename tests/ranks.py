"""A worker extension that makes tensor-parallel ranks compute different probabilities, as on unequal hardware.

LLM(..., tensor_parallel_size=2, worker_extension_cls="tests.ranks.CertainRank").collective_rpc("become_certain")
"""

from typing import Any

import torch

from spec_worker import candidates


class CertainRank:
    """Mixed into vLLM's worker."""

    rank: int

    def become_certain(self) -> bool:
        """From now on every candidate is certain, except on the first rank. Returns whether that changed this rank."""
        if self.rank == 0:
            return False

        def certain(logits: Any, found: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(found, dtype=torch.float64)

        candidates.probability = certain
        return True
