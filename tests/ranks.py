"""A worker extension that makes tensor-parallel ranks compute different probabilities, as on unequal hardware.

LLM(..., tensor_parallel_size=2, worker_extension_cls="tests.ranks.UnequalRank").collective_rpc("halve_probabilities")
"""

from typing import Any

from spec_worker import candidates


class UnequalRank:
    """Mixed into vLLM's worker."""

    rank: int

    def halve_probabilities(self) -> bool:
        """Halve the probability of each candidate from now on, except on the first rank. Returns whether it does."""
        if self.rank == 0:
            return False
        inherited = candidates.probability

        def halved(*args: Any) -> Any:
            return inherited(*args) / 2

        candidates.probability = halved
        return True
