"""The router's metrics, `nld_router_*`, at its `/metrics`: sums over all routers, which report to the judge.

All counters exist from the start, so that their first increment shows in rates.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from nld_serve.rollout import CRITERIA, Finding, Phase, State
from nld_serve.window import GROWTH, Tally

DEPLOYMENTS = ("stable", "canary")
# Why a request of the canary went to stable: its queue was full; no replica took it in time or there is none; it was
# lost before its first token; it was answered with a 5xx.
FAILOVERS = ("queue", "unaccepted", "lost", "error")
SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 240.0, 480.0)


class RouterMetrics:
    """What the judge knows, in Prometheus's format."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "nld_router_requests",
            "Requests that ended on a deployment, by outcome: ok, error. A failed-over request counts on both.",
            ["deployment", "outcome"],
            registry=registry,
        )
        self.failovers = Counter(
            "nld_router_failovers",
            "Requests of the canary that stable answered, by reason: queue, unaccepted, lost, error.",
            ["reason"],
            registry=registry,
        )
        self.seconds = Histogram(
            "nld_router_request_seconds",
            "Time from request to last byte of answers with status 200.",
            ["deployment"],
            buckets=SECONDS,
            registry=registry,
        )
        self.share = Gauge(
            "nld_router_canary_share", "Share of the clients that the canary has now.", registry=registry
        )
        self.configured = Gauge(
            "nld_router_canary_share_configured", "canary_share in the settings: where it begins.", registry=registry
        )
        self.phase = Gauge("nld_router_canary_phase", "1 for the phase of the canary.", ["phase"], registry=registry)
        self.rolled_back = Gauge(
            "nld_router_canary_rolled_back", "1 from an automatic rollback to the next run.", registry=registry
        )
        self.rollbacks = Counter(
            "nld_router_canary_rollbacks",
            "Automatic rollbacks by breached criterion, and those that a dry run only reports.",
            ["criterion", "dry_run"],
            registry=registry,
        )
        self.value = Gauge(
            "nld_router_canary_value",
            "What a criterion of rollback is measured at in the latest window; absent while there is too little data.",
            ["criterion"],
            registry=registry,
        )
        self.limit = Gauge("nld_router_canary_limit", "The limit of a criterion.", ["criterion"], registry=registry)
        self.breached = Gauge(
            "nld_router_canary_breached", "1 while a criterion is breached.", ["criterion"], registry=registry
        )
        self._start()

    def _start(self) -> None:
        for deployment in DEPLOYMENTS:
            self.seconds.labels(deployment)
            for outcome in ("ok", "error"):
                self.requests.labels(deployment, outcome)
        for reason in FAILOVERS:
            self.failovers.labels(reason)
        for criterion in CRITERIA:
            for dry_run in ("true", "false"):
                self.rollbacks.labels(criterion, dry_run)

    def count(self, deployment: str, tally: Tally) -> None:
        """Add what a router reports."""
        self.requests.labels(deployment, "ok").inc(tally.requests - tally.errors)
        self.requests.labels(deployment, "error").inc(tally.errors)
        for bucket, count in tally.seconds.items():
            for _ in range(count):
                self.seconds.labels(deployment).observe(GROWTH**bucket)

    def show(self, state: State, configured: float, found: Iterable[Finding]) -> None:
        """Set the gauges."""
        self.share.set(state.share)
        self.configured.set(configured)
        self.rolled_back.set(state.phase is Phase.ROLLED_BACK)
        for phase in Phase:
            self.phase.labels(phase.value).set(state.phase is phase)
        for gauge in (self.value, self.limit, self.breached):
            gauge.clear()
        for finding in found:
            self.value.labels(finding.criterion).set(finding.value)
            self.limit.labels(finding.criterion).set(finding.limit)
            self.breached.labels(finding.criterion).set(finding.breached)

    def text(self) -> bytes:
        return generate_latest(self.registry)
