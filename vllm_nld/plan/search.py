"""The fewest replicas that meet the targets, by doubling and halving; and a scenario that is simulated for that.

scenario = Scenario(...)
count = fewest(lambda replicas: scenario.meets(replicas), least=1, most=4096)
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vllm_nld.plan.acceptance import Acceptance
from vllm_nld.plan.figures import Figures, measure
from vllm_nld.plan.fleet import ROUTERS, simulate
from vllm_nld.plan.front_end import Costs, FrontEnd
from vllm_nld.plan.policies import Policy
from vllm_nld.plan.replica import Job, Limits, Replica
from vllm_nld.plan.steps import Steps
from vllm_nld.plan.traffic import Request

WARM_UP = 0.2  # share of the time that doesn't count
MISSES = 0.05  # share of requests that may miss a P95 target


@dataclass(frozen=True, slots=True)
class Scenario:
    """A kind of replica, a mode, a traffic and targets.

    traffic: the requests for a part of the fleet, by that part (1.0: all of it).
    targets: seconds at P95, by name of a latency. gpus: of a replica. front, processes: its API server.
    shard: replicas that are simulated at most; so many represent a larger fleet, with their part of the traffic.
    """

    steps: Steps
    limits: Limits
    policy: Policy
    block: int
    acceptance: Acceptance
    traffic: Callable[[float], list[Request]]
    seconds: float
    targets: Mapping[str, float]
    passes: float = 1.0
    gpus: int = 1
    front: Costs = Costs()
    processes: int = 1
    overhead: float = 0.0
    routing: str = "two_choices"
    shard: int = 4
    seed: int = 0
    found: dict[int, Figures | None] = field(default_factory=dict)  # by replicas; None: stopped early, targets missed

    @property
    def window(self) -> tuple[float, float]:
        return WARM_UP * self.seconds, self.seconds

    def run(self, replicas: int, early: bool = False) -> Figures | None:
        """Figures of a fleet. early: stop, and return None, as soon as it is certain that a target is missed."""
        if self.found.get(replicas) is None and not (early and replicas in self.found):
            self.found[replicas] = self._simulate(replicas, early)
        return self.found[replicas]

    def _simulate(self, replicas: int, early: bool) -> Figures | None:
        if replicas < 1:
            raise ValueError(f"a fleet needs at least 1 replica, not {replicas}")
        count = min(replicas, self.shard)
        requests = self.traffic(count / replicas)
        made = [
            Replica(self.limits, self.policy, self.block, self.steps, self.acceptance, self.passes, self.window, front)
            for front in [FrontEnd(self.front, self.processes) for _ in range(count)]
        ]
        route = ROUTERS[self.routing](random.Random(self.seed))
        counted = sum(self._counts(request) for request in requests)
        stop = Misses(self, MISSES * counted) if early else lambda job, now: False
        outcome = simulate(requests, made, route, self.seed, stop)
        if not outcome.ended:
            return None
        return Figures.of(outcome, self.window, replicas * self.gpus, self.overhead, replicas / count)

    def _counts(self, request: Request) -> bool:
        return self.window[0] <= request.arrival <= self.window[1]

    def meets(self, replicas: int) -> bool:
        """Whether a fleet meets all targets and keeps up."""
        figures = self.run(replicas, early=True)
        if figures is None or figures.saturated:
            return False
        return all(figures.p95[name] <= target for name, target in self.targets.items())

    def missed(self, job: Job) -> bool:
        """Whether a request that has got its first token, or has ended, misses a target."""
        for name, target in self.targets.items():
            if (name == "ttft" or job.done) and measure(job, name, self.overhead) > target:
                return True
        return False


class Misses:
    """Counts the requests that miss a target; true as soon as they are more than allowed."""

    def __init__(self, scenario: Scenario, allowed: float) -> None:
        self._scenario, self._allowed, self._missed = scenario, allowed, set[int]()

    def __call__(self, job: Job, now: float) -> bool:
        if self._scenario._counts(job.request) and self._scenario.missed(job):
            self._missed.add(id(job))
        return len(self._missed) > self._allowed + 1


def fewest(meets: Callable[[int], bool], least: int = 1, most: int = 4096) -> int | None:
    """The smallest number that meets, if any number above it does too; None if even `most` doesn't."""
    low, high, step = least - 1, least, max(1, least // 4)  # low doesn't meet, or isn't allowed
    while not meets(high):
        if high >= most:
            return None
        low, high, step = high, min(high + step, most), 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        if meets(middle):
            high = middle
        else:
            low = middle
    return high
