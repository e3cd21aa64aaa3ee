"""A worker extension: ranks that compute different probabilities, as on unequal hardware, and that keep draft logits.

llm = LLM(..., tensor_parallel_size=2, worker_extension_cls="tests.ranks.Rank")
llm.collective_rpc("become_certain")
"""

from collections.abc import Callable
from typing import Any

import torch

from spec_worker import candidates


def recording(find: Callable[..., Any], seen: list[torch.Tensor]) -> Callable[..., Any]:
    """`Candidates._find`, which also keeps a copy of each pass's logits, [drafts, V]."""

    def found(self: Any, logits: torch.Tensor, *rest: Any) -> Any:
        seen.append(logits.detach().float().clone())
        return find(self, logits, *rest)

    return found


class Rank:
    """Mixed into vLLM's worker."""

    rank: int

    def keep_drafts(self) -> None:
        """From now on draft logits are kept."""
        self.seen: list[torch.Tensor] = []
        candidates.Candidates._find = recording(candidates.Candidates._find, self.seen)  # type: ignore[method-assign]  # in this process only

    def kept_drafts(self) -> list[list[list[float]]]:
        """The logits of each pass, [drafts][V]."""
        return [logits.tolist() for logits in self.seen]

    def become_certain(self) -> bool:
        """From now on every candidate is certain, except on the first rank. Returns whether that changed this rank."""
        if self.rank == 0:
            return False

        def certain(logits: Any, found: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(found, dtype=torch.float64)

        candidates.probability = certain
        return True
