"""What a simulated fleet does: latencies, tokens per second, use, and cost.

figures = Figures.of(outcome, window=(24.0, 120.0), gpus=4, overhead=0.0)
figures.p95["ttft"], figures.tokens_per_second, figures.cost_per_million(price=2.5)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_nld.plan.fleet import Outcome
from vllm_nld.plan.replica import Job, rounds_and_tokens

LATENCIES = {
    "ttft": "time to first token",
    "tpot": "time per output token after the first",
    "latency": "time to the last token",
}
GROWTH = 0.1  # share of the arrivals by which the requests in a fleet that keeps up may grow


@dataclass(frozen=True, slots=True)
class Figures:
    """A fleet's figures over a window of time. Seconds; percentiles over the requests that arrived in it."""

    requests: int
    gpus: int
    p50: Mapping[str, float]
    p95: Mapping[str, float]
    tokens_per_second: float
    busy: float  # share of the time in which a replica computes
    acceptance_length: float  # tokens per verify step
    preemptions: int
    growth: float  # requests in the fleet at the end beyond those at the beginning, by arrivals

    @classmethod
    def of(
        cls, outcome: Outcome, window: tuple[float, float], gpus: int, overhead: float, scale: float = 1.0
    ) -> "Figures":
        """overhead: seconds of a request beyond its steps. scale: the whole fleet relative to the simulated part.

        Raises ValueError if no request arrived in the window.
        """
        begin, end = window
        jobs = [job for job in outcome.jobs if begin <= job.request.arrival <= end]
        if not jobs:
            raise ValueError(f"no request arrived between {begin:.0f} s and {end:.0f} s: simulate more seconds")
        values = {name: [measure(job, name, overhead) for job in jobs] for name in LATENCIES}
        values["tpot"] = [value for value in values["tpot"] if not math.isnan(value)] or [0.0]
        steps, tokens = rounds_and_tokens(outcome.jobs)
        span = max(end - begin, 1e-9)
        return cls(
            len(jobs),
            gpus,
            {name: percentile(found, 50) for name, found in values.items()},
            {name: percentile(found, 95) for name, found in values.items()},
            scale * sum(replica.emitted for replica in outcome.replicas) / span,
            sum(replica.busy for replica in outcome.replicas) / len(outcome.replicas) / span,
            tokens / steps if steps else 1.0,
            sum(job.preempted for job in outcome.jobs),
            (present(outcome.jobs, end) - present(outcome.jobs, begin)) / len(jobs),
        )

    @property
    def saturated(self) -> bool:
        """Whether the fleet cannot keep up: requests pile up, and latencies depend on how long one looks."""
        return self.growth > GROWTH

    @property
    def gpu_seconds_per_million(self) -> float:
        """GPU-seconds per million output tokens, idle time included."""
        return 1e6 * self.gpus / self.tokens_per_second if self.tokens_per_second else math.inf

    def cost_per_million(self, price: float) -> float:
        """Cost of a million output tokens. price: of one GPU for an hour."""
        return self.gpu_seconds_per_million / 3600 * price


def present(jobs: Sequence[Job], time: float) -> int:
    """Requests that wait or run at a time."""
    return sum(job.request.arrival <= time < job.seen_last for job in jobs)


def measure(job: Job, name: str, overhead: float = 0.0) -> float:
    """One latency of an ended request, in seconds; not a number for `tpot` of a single token."""
    if name == "ttft":
        return job.seen_first - job.request.arrival + overhead
    if name == "latency":
        return job.seen_last - job.request.arrival + overhead
    return (job.seen_last - job.seen_first) / (job.request.output - 1) if job.request.output > 1 else math.nan


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between the closest ranks, as numpy's default."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * share / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
