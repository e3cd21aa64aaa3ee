"""Memory bandwidth and dense bfloat16 rate of machines, from data sheets, and of this CPU, measured.

DEVICES["H100"].bandwidth                   # bytes per second
cpu_rates()                                 # bytes and FLOP per second of this CPU
"""

import statistics
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """A machine. The efficiencies are the share of the data sheet that good kernels reach; `launch` is a layer's cost
    beyond its arithmetic, `host` a forward's cost beyond its layers.
    """

    name: str
    bandwidth: float  # bytes per second
    flops: float  # dense bfloat16 FLOP per second
    launch: float = 30e-6  # seconds per layer: ten kernels of 3 µs
    host: float = 0.3e-3  # seconds per forward
    memory_efficiency: float = 0.8
    compute_efficiency: float = 0.6


def sheet(name: str, terabytes: float, teraflops: float) -> Device:
    return Device(name, terabytes * 1e12, teraflops * 1e12)


DEVICES = {
    device.name: device
    for device in (
        sheet("H100", 3.35, 989),
        sheet("H200", 4.8, 989),
        sheet("B200", 8.0, 2250),
        sheet("GB200", 8.0, 2500),
        sheet("RTX Pro 6000", 1.79, 500),
        sheet("DGX Spark", 0.273, 125),
    )
}


def cpu_rates(rows: int = 128, size: int = 4096) -> tuple[float, float]:
    """Bytes per second at which a one-row product reads its weights on this CPU, and FLOP/s of a many-row product."""
    import torch

    torch.manual_seed(0)
    weights = [torch.randn(size, size).bfloat16() for _ in range(8)]  # together larger than any cache
    one, many = torch.randn(1, size).bfloat16(), torch.randn(rows, size).bfloat16()
    read = median_of(lambda: [torch.nn.functional.linear(one, w) for w in weights])
    multiply = median_of(lambda: [torch.nn.functional.linear(many, w) for w in weights])
    return len(weights) * weights[0].nbytes / read, len(weights) * 2 * rows * size * size / multiply


def median_of(function, repeats: int = 7) -> float:  # type: ignore[no-untyped-def]  # any callable without arguments
    """Median seconds per call, after one warm-up call."""
    function()
    samples = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        samples.append(time.perf_counter() - begin)
    return statistics.median(samples)
