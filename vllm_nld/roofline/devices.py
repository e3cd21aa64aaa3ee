"""Bandwidth, dense bfloat16 rate, memory and links of machines, from data sheets, and of this CPU, measured.

DEVICES["H100"].bandwidth                   # bytes per second
group(DEVICES["H100"], 4)                   # four of them, with tensor parallelism
cpu_rates()                                 # bytes and FLOP per second of this CPU
"""

import statistics
import time
from dataclasses import dataclass, replace


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
    memory: float = 0.0  # bytes; 0: unknown
    link: float = 0.0  # bytes per second in each direction to other GPUs; 0: none
    ranks: int = 1  # GPUs that share each layer
    sync: float = 10e-6  # seconds of an all-reduce beyond its transfers


def sheet(name: str, terabytes: float, teraflops: float, gigabytes: float, link: float) -> Device:
    """gigabytes: of memory. link: gigabytes per second."""
    return Device(name, terabytes * 1e12, teraflops * 1e12, memory=gigabytes * 1e9, link=link * 1e9)


def group(device: Device, ranks: int) -> Device:
    """So many of them that share each layer. Raises ValueError if they have no known link."""
    if ranks < 1:
        raise ValueError(f"tensor parallelism needs at least 1 GPU, not {ranks}")
    if ranks > 1 and not device.link:
        raise ValueError(f"the links between devices of the kind {device.name} are not known: use one per replica")
    total = {name: getattr(device, name) * ranks for name in ("bandwidth", "flops", "memory")}
    return replace(device, ranks=ranks, **total)


DEVICES = {
    device.name: device
    for device in (
        sheet("H100", 3.35, 989, 80, 450),
        sheet("H200", 4.8, 989, 141, 450),
        sheet("B200", 8.0, 2250, 180, 900),
        sheet("GB200", 8.0, 2500, 186, 900),
        sheet("RTX Pro 6000", 1.79, 500, 96, 64),
        sheet("DGX Spark", 0.273, 125, 128, 25),
    )
}


def rates(device: str, rows: int, size: int = 4096) -> tuple[float, float]:
    """Bytes per second at which a one-row product reads its weights, and FLOP/s of a product of many rows."""
    import torch

    torch.manual_seed(0)
    weights = [torch.randn(size, size, device=device).bfloat16() for _ in range(8)]  # together larger than any cache
    one, many = (torch.randn(count, size, device=device).bfloat16() for count in (1, rows))
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None

    def multiply(rows: torch.Tensor) -> None:
        for weight in weights:
            torch.nn.functional.linear(rows, weight)
        synchronize()

    read, compute = median_of(lambda: multiply(one)), median_of(lambda: multiply(many))
    return len(weights) * weights[0].nbytes / read, len(weights) * 2 * rows * size * size / compute


def cpu_rates() -> tuple[float, float]:
    """The rates of this CPU."""
    return rates("cpu", rows=128)


def gpu_rates() -> tuple[float, float]:
    """The rates of this GPU."""
    return rates("cuda", rows=8192)


def named(name: str) -> Device | None:
    """The data sheet of a GPU by the name that its driver gives it, "NVIDIA H100 80GB HBM3"; None if it isn't known."""
    words = name.casefold().split()
    return next((device for key, device in DEVICES.items() if set(key.casefold().split()) <= set(words)), None)


def median_of(function, repeats: int = 7) -> float:  # type: ignore[no-untyped-def]  # any callable without arguments
    """Median seconds per call, after one warm-up call."""
    function()
    samples = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        samples.append(time.perf_counter() - begin)
    return statistics.median(samples)
