"""Can this machine run the model, and how fast?"""

import os
import platform
from collections.abc import Iterator

from vllm_nld.tools.doctor.check import Check


def check_triton() -> Iterator[Check]:
    """Model Runner V2 needs Triton: the GPU's own, or our cpu backend with its kernels."""
    from triton.backends import backends
    from vllm.platforms import current_platform
    from vllm.triton_utils import HAS_TRITON

    detail = f"backends: {', '.join(sorted(backends))}"
    remedy = "reinstall vllm-nld (its entry point triton.backends: cpu is missing) and unset TRITON_BACKENDS_IN_TREE"
    yield Check("triton", HAS_TRITON, detail, remedy)
    if not current_platform.is_cpu():
        return
    interpret = os.environ.get("TRITON_INTERPRET")
    yield Check("triton cpu", interpret == "1", f"TRITON_INTERPRET={interpret}", "unset it", summary=False)
    yield from check_kernels()


def check_kernels() -> Iterator[Check]:
    """How Model Runner V2's kernels run on the CPU. A stale twin was written for another source of its kernel."""
    from vllm_nld.triton_cpu import status

    kernels = status()
    names = {
        state: [kernel.name.rpartition(".")[2] for kernel in kernels if kernel.state == state]
        for state in ("native", "interpreted", "stale")
    }
    yield Check("kernels", True, ", ".join(f"{len(found)} {state}" for state, found in names.items()))
    remedy = "install the tested vLLM, or a vllm-nld release for yours: these kernels are interpreted, which is slow"
    for state, found in names.items():
        passed = state != "stale" or not found
        yield Check(f"{state} kernels", passed, ", ".join(found) or "none", remedy, summary=False)


def check_device() -> Iterator[Check]:
    """The parts of the machine that decide how fast it serves."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        yield check_cpu()
        yield check_threads()
        return
    try:
        capability = current_platform.get_device_capability()
        name = current_platform.get_device_name()
        detail = f"{name}, compute capability {capability.as_version_str() if capability else 'unknown'}"
        yield Check("device", capability is not None, detail, "check the driver: nvidia-smi")
    except Exception as error:
        yield Check("device", False, f"{type(error).__name__}: {error}", "check the driver: nvidia-smi")


def check_threads() -> Check:
    """The threads that compute, what else runs on this machine, and what would suit it."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    threads, bind = os.environ.get("OMP_NUM_THREADS"), os.environ.get("VLLM_CPU_OMP_THREADS_BIND")
    chosen = f"OMP_NUM_THREADS {threads or 'unset'}, VLLM_CPU_OMP_THREADS_BIND {bind or 'unset'}"
    seen = f"load {load:.1f} on {cores} cores; {chosen}"
    return Check("threads", True, f"{seen}. {advice(cores, load, threads, bind)}")


def advice(cores: int, load: float, threads: str | None, bind: str | None) -> str:
    """What to set for steady answers.

    Threads of one product wait for each other, so on a busy machine more threads are slower, and bound ones much more.
    """
    if bind not in (None, "nobind") and load > cores / 4:
        return "Other processes run here, and bound threads wait for their cores: set VLLM_CPU_OMP_THREADS_BIND=nobind"
    if threads == "1":
        return "Steady, and enough for small models; large ones on an idle machine want more threads"
    if load > cores / 4:
        return "Other processes run here: OMP_NUM_THREADS=1 is steadier"
    return "Good for large models on an idle machine; for small ones, or on a shared machine, set OMP_NUM_THREADS=1"


def check_cpu() -> Check:
    """Cores, and the instruction sets that vLLM's CPU build uses."""
    import torch

    from vllm_nld.serving.cpu import emulates_half_precision

    features = {
        "AVX2": torch.cpu._is_avx2_supported(),
        "AVX-512": torch.cpu._is_avx512_supported(),
        "bf16": torch.cpu._is_avx512_bf16_supported(),
        "AMX": torch.cpu._is_amx_tile_supported(),
    }
    has = ", ".join(name for name, present in features.items() if present) or "none of AVX2, AVX-512, bf16, AMX"
    usable = features["AVX2"] or platform.machine() != "x86_64"
    cores = len(os.sched_getaffinity(0))
    slow = ". Without AVX-512 bfloat16 is slow: serve with --dtype float32" if emulates_half_precision() else ""
    return Check("device", usable, f"CPU, {cores} cores, {has}{slow}", "vLLM's CPU build needs AVX2 on x86")
