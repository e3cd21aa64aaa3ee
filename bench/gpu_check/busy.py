"""The share of time in which the device has nothing to do, because the host has not caught up.

idle("cuda", run)                   # 0.03: 3 % of the time between the first kernel and the last one
"""

from collections.abc import Callable, Iterable


def idle(device: str, step: Callable[[], object], count: int) -> float | None:
    """Profile some steps; the profiler slows the host down, so this is an upper bound. None if it saw nothing.

    On a CPU: the share of time outside torch's operators.
    """
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    gpu = device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU], acc_events=True) as profiler:
        for _ in range(count):
            step()
        if gpu:
            torch.cuda.synchronize()
    kind = DeviceType.CUDA if gpu else DeviceType.CPU
    events = [e for e in profiler.events() if e.device_type == kind and not getattr(e, "is_user_annotation", False)]
    return gaps((event.time_range.start, event.time_range.end) for event in events)


def gaps(spans: Iterable[tuple[float, float]]) -> float | None:
    """The share of the time from the first start to the last end that no span covers."""
    ordered = sorted(spans)
    if not ordered or ordered[0][0] == max(end for _, end in ordered):
        return None
    begin = reached = ordered[0][0]
    idle = 0.0
    for start, end in ordered:
        idle += max(0.0, start - reached)
        reached = max(reached, end)
    return idle / (reached - begin)
