"""A fleet: requests arrive, a router chooses a replica for each, and every replica runs its steps one after another.

outcome = simulate(requests, replicas, ROUTERS["two_choices"](random.Random(0)), seed=0)
outcome.jobs                                    # every request, ended
"""

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllm_nld.plan.replica import Job, Replica
from vllm_nld.plan.traffic import Request

Route = Callable[[Sequence[Replica]], int]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulation yields. ended: False if it was stopped early, and `jobs` has only those that ended before."""

    jobs: list[Job]
    replicas: list[Replica]
    ended: bool = True


def simulate(
    requests: Sequence[Request],
    replicas: list[Replica],
    route: Route,
    seed: int = 0,
    hopeless: Callable[[Job, float], bool] = lambda job, now: False,
) -> Outcome:
    """Run until every request has ended.

    requests: by time of arrival. seed: of the acceptance of drafts, which does not depend on the fleet's size.
    hopeless: called when a request has got its first token or its last; True stops the simulation.
    """
    steps: list[tuple[float, int]] = []  # when each busy replica's step ends
    idle, jobs, position = set(range(len(replicas))), [], 0
    while steps or position < len(requests):
        if position < len(requests) and (not steps or requests[position].arrival <= steps[0][0]):
            request = requests[position]
            now, index = request.arrival, route(replicas)
            replicas[index].add(Job(request, random.Random((seed << 32) + position)))
            position += 1
        else:
            now, index = heapq.heappop(steps)
            for job in ended(replicas[index], now):
                if job.done:
                    jobs.append(job)
                if hopeless(job, now):
                    return Outcome(jobs, replicas, ended=False)
            idle.add(index)
        if index in idle and replicas[index].has_work:
            idle.discard(index)
            heapq.heappush(steps, (replicas[index].begin(now), index))
    return Outcome(jobs, replicas)


def ended(replica: Replica, now: float) -> list[Job]:
    """End a step; the requests that got their first token in it or their last."""
    finished = replica.finish(now)
    return [*finished, *(job for job in replica.running if job.first == now)]


# Routers


def random_choice(rng: random.Random) -> Route:
    """Any replica: what a plain Kubernetes service does."""
    return lambda replicas: rng.randrange(len(replicas))


def round_robin(rng: random.Random) -> Route:
    """One after another."""
    count = iter(range(1 << 62))
    return lambda replicas: next(count) % len(replicas)


def two_choices(rng: random.Random) -> Route:
    """Of two random replicas, the one with fewer requests: Ray Serve's router."""

    def route(replicas: Sequence[Replica]) -> int:
        if len(replicas) == 1:
            return 0
        one, other = rng.sample(range(len(replicas)), 2)
        return min(one, other, key=lambda index: (replicas[index].outstanding, index))

    return route


def least_loaded(rng: random.Random) -> Route:
    """The replica with the fewest requests: a router that knows all queues."""

    def route(replicas: Sequence[Replica]) -> int:
        return min(range(len(replicas)), key=lambda index: (replicas[index].outstanding, index))

    return route


ROUTERS: dict[str, Callable[[random.Random], Route]] = {
    "two_choices": two_choices,
    "random": random_choice,
    "round_robin": round_robin,
    "least_loaded": least_loaded,
}
