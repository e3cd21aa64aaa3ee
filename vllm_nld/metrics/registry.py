"""This process's metric objects: prometheus_client's, or Ray's inside Ray Serve."""

from typing import Any

import prometheus_client

from vllm_nld.compat.ray_metrics import metric_classes
from vllm_nld.metrics import definitions as m


class Registry:
    """Creates each metric on first use, once per process, even if the process creates several engines."""

    def __init__(self) -> None:
        self.model_name: str | None = None  # of the served model; None if no NLD model is served over HTTP
        self.metrics: dict[str, Any] = {}
        self.children: dict[tuple[str, ...], Any] = {}

    def metric(self, metric: m.Metric) -> Any:
        """A metric without label values."""
        if metric.name not in self.metrics:
            self.metrics[metric.name] = make(metric)
        return self.metrics[metric.name]

    def child(self, metric: m.Metric, engine: int, *labels: str) -> Any:
        """A metric for one engine of the served model and the values of its other labels; cached."""
        assert self.model_name is not None
        key = (self.model_name, metric.name, str(engine), *labels)
        if key not in self.children:
            self.children[key] = self.metric(metric).labels(self.model_name, str(engine), *labels)
        return self.children[key]

    def refused(self, reason: str) -> None:
        """Count a request that was refused before it reached an engine. `reason` is one of `definitions.REFUSALS`."""
        if self.model_name is not None:
            self.metric(m.REFUSED).labels(self.model_name, reason).inc()


def make(metric: m.Metric) -> Any:
    """Create and register a metric."""
    counter, gauge, histogram = metric_classes() or (
        prometheus_client.Counter,
        prometheus_client.Gauge,
        prometheus_client.Histogram,
    )
    common: dict[str, Any] = {
        "name": metric.name,
        "documentation": metric.help,
        "labelnames": list(metric.label_names),
    }
    if metric.kind == m.COUNTER:
        return counter(**common)
    if metric.kind == m.HISTOGRAM:
        return histogram(buckets=list(metric.buckets), **common)
    return gauge(multiprocess_mode="mostrecent", **common)


REGISTRY = Registry()
