"""Where the host waits for the device: each wait leaves the device idle until the host has caught up.

    with waits("cuda") as places:
        llm.llm_engine.step()
    places                              # {"spec_worker/fill.py:84": 3}

On a GPU, torch warns of each wait. On a CPU nothing waits; there, uses of what would wait on a GPU count, in our files.
"""

import contextlib
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OURS = ("spec_worker", "attention_backend", "vllm_nld")
CPU_ONLY = ("attention_backend/kernels/cpu.py", "attention_backend/kernels/pages.py", "vllm_nld/triton_cpu")
READS = {"item", "tolist", "cpu", "nonzero", "masked_select", "unique", "__bool__", "__int__", "__float__", "__index__"}
ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def waits(device: str) -> Iterator[Counter[str]]:
    """Count waits by file and line."""
    places: Counter[str] = Counter()
    with on_gpu(places) if device == "cuda" else on_cpu(places):
        yield places


def is_ours(place: str) -> bool:
    return place.startswith(OURS)


@contextlib.contextmanager
def on_gpu(places: Counter[str]) -> Iterator[None]:
    import torch

    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        if "synchroniz" in str(warning.message):
            places[f"{short(warning.filename)}:{warning.lineno}"] += 1


@contextlib.contextmanager
def on_cpu(places: Counter[str]) -> Iterator[None]:
    from torch.overrides import TorchFunctionMode

    class Reads(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__name__", "") in READS and (place := caller()) is not None:
                places[place] += 1
            return func(*args, **(kwargs or {}))

    with Reads():
        yield


def caller() -> str | None:
    """The line that called into torch, if it is ours and not for CPUs only."""
    frame: Any = sys._getframe(1)
    while frame is not None and (frame.f_code.co_filename == __file__ or "/torch/" in frame.f_code.co_filename):
        frame = frame.f_back
    name = "" if frame is None else short(frame.f_code.co_filename)
    return f"{name}:{frame.f_lineno}" if is_ours(name) and not name.startswith(CPU_ONLY) else None


def short(filename: str) -> str:
    """A file's name without the folders above the checkout or the installed packages."""
    path = Path(filename)
    if path.is_relative_to(ROOT):
        return str(path.relative_to(ROOT))
    return filename.rpartition("site-packages/")[2]
