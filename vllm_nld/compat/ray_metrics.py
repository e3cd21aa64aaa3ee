"""Ray's metric classes, which vLLM wraps to look like prometheus_client's."""

import sys
from typing import Any


def metric_classes() -> tuple[Any, Any, Any] | None:
    """Counter, gauge and histogram that report to Ray inside a Ray Serve replica; None elsewhere."""
    if "ray.serve" not in sys.modules:
        return None
    from vllm.v1.metrics import ray_wrappers

    if ray_wrappers._get_replica_id() is None:
        return None
    return ray_wrappers.RayCounterWrapper, ray_wrappers.RayGaugeWrapper, ray_wrappers.RayHistogramWrapper
