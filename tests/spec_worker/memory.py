"""How much memory a call needs at most for tensors that it makes, on any device."""

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """`with Peak() as peak: ...` and then `peak.bytes`: the most that was alive at once of what was made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.alive = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if torch.is_tensor(leaf) and leaf.untyped_storage().data_ptr() not in given:
                self._made(leaf.untyped_storage())
        return out

    def _made(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.alive += size
        self.bytes = max(self.bytes, self.alive)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.alive -= size


@contextlib.contextmanager
def drafting(runner: Any, method: str = "draft") -> Iterator[list[int]]:
    """The most bytes that each call of a runner's speculator needs."""
    found: list[int] = []
    inherited = getattr(runner.speculator, method)

    def measured(*args: Any, **more: Any) -> Any:
        with Peak() as peak:
            out = inherited(*args, **more)
        found.append(peak.bytes)
        return out

    with patch.object(runner.speculator, method, measured):
        yield found


def profiled(runner: Any) -> int:
    """What vLLM's memory profile sees of drafting."""
    with drafting(runner, "propose") as found:
        runner._dummy_run(runner.max_num_tokens, skip_attn=True, is_profile=True)
    return found[0]
