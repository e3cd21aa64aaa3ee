"""What a CPU is bad at."""

import platform

import torch


def emulates_half_precision() -> bool:
    """Whether this CPU computes bfloat16 and float16 number by number: an x86 processor without AVX-512."""
    return platform.machine() in ("x86_64", "AMD64") and "AVX512" not in torch.backends.cpu.get_cpu_capability()
