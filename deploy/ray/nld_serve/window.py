"""What a deployment did lately: outcomes of requests from the routers, counts of drafts from the replicas.

tally.add(seconds=0.8)                # a router, for each request
window.add(now, "canary", tally)      # the judge, for each report
window.sum(now, "canary").p95
"""

import math
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field

GROWTH = 1.1  # of the latencies' buckets: percentiles are at most this factor too large


@dataclass(slots=True)
class Tally:
    """Sums over requests and over drafted blocks (`drafts`, by the names in `replica.COUNTS`)."""

    requests: int = 0
    errors: int = 0
    seconds: Counter[int] = field(default_factory=Counter)  # latencies of whole answers, by bucket
    drafts: Counter[str] = field(default_factory=Counter)

    def add(self, seconds: float | None = None, failed: bool = False) -> None:
        """Count a request, with its latency if it was answered."""
        self.requests += 1
        self.errors += failed
        if seconds is not None:
            self.seconds[math.ceil(math.log(max(seconds, 1e-3), GROWTH))] += 1

    def merge(self, other: "Tally") -> None:
        """Add another tally's sums to these."""
        self.requests += other.requests
        self.errors += other.errors
        self.seconds.update(other.seconds)
        self.drafts.update(other.drafts)

    @property
    def p95(self) -> float:
        """The 95th percentile of the latencies, in seconds; 0 if there are none."""
        return self._at_rank(math.ceil(0.95 * self.seconds.total()))

    @property
    def p95_at_least(self) -> float:
        """What the 95th percentile of all such requests is at least, beyond doubt: one slow request of twenty is luck.

        As many latencies as four standard deviations allow may lie above it (and one more: the tail is skewed).
        """
        count = self.seconds.total()
        return self._at_rank(count - math.ceil(0.05 * count + 4 * math.sqrt(0.05 * 0.95 * count) + 1))

    def _at_rank(self, rank: int) -> float:
        """The rank-th smallest latency; 0 if there is none."""
        seen = 0
        for bucket, count in sorted(self.seconds.items()):
            seen += count
            if seen >= rank > 0:
                return GROWTH**bucket
        return 0.0


class Window:
    """Tallies of the latest `length` seconds, by deployment."""

    def __init__(self) -> None:
        self._parts: dict[str, deque[tuple[float, Tally]]] = defaultdict(deque)

    def add(self, now: float, deployment: str, tally: Tally) -> None:
        self._parts[deployment].append((now, tally))

    def sum(self, now: float, deployment: str, length: float) -> Tally:
        """The sum of what was added in the latest `length` seconds. Forgets what is older."""
        parts, total = self._parts[deployment], Tally()
        while parts and parts[0][0] < now - length:
            parts.popleft()
        for _, tally in parts:
            total.merge(tally)
        return total


class Increments:
    """Turns the counters of replicas, which come and go, into what was added since the last look."""

    def __init__(self) -> None:
        self._last: dict[str, Counter[str]] = {}

    def of(self, replicas: dict[str, Counter[str]]) -> Counter[str]:
        """The sum of the increments. A replica that is seen for the first time only gives its starting values."""
        added: Counter[str] = Counter()
        for address, counts in replicas.items():
            if address in self._last:
                added.update(counts - self._last[address])  # without negative ones: a server that started again
        self._last = replicas
        return added
