"""A worker extension: a tensor-parallel rank whose arithmetic differs from the first one's, as on uneven hardware.

LLM(..., tensor_parallel_size=2, worker_extension_cls="tests.ranks.UnsureRank").collective_rpc("become_unsure")
"""

from typing import Any

from spec_worker import candidates


class UnsureRank:
    """Mixed into vLLM's worker."""

    rank: int

    def become_unsure(self) -> bool:
        """On every rank but the first, halve the probability of each candidate from now on. Returns whether it did."""
        if self.rank == 0:
            return False
        inherited = candidates.probability

        def halved(*args: Any) -> Any:
            return inherited(*args) / 2

        candidates.probability = halved
        return True
