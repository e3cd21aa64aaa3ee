"""A fleet: requests arrive, a router chooses a replica for each, its API server reads them, its engine runs steps.

outcome = simulate(requests, replicas, ROUTERS["two_choices"](random.Random(0)), seed=0)
outcome.jobs                                    # every request, ended
"""

import heapq
import itertools
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
    events: list[
        tuple[float, int, int, Job | None]
    ] = []  # time, tie, replica, who enters its engine; None: a step ends
    idle, jobs, position, ties = set(range(len(replicas))), [], 0, itertools.count()
    while events or position < len(requests):
        if position < len(requests) and (not events or requests[position].arrival <= events[0][0]):
            request, index = requests[position], route(replicas)
            arrived = Job(request, random.Random((seed << 32) + position))
            ready = replicas[index].admit(request.arrival, arrived)
            heapq.heappush(events, (ready, next(ties), index, arrived))
            position += 1
            continue
        now, _, index, entering = heapq.heappop(events)
        if entering is not None:
            replicas[index].add(entering)
        else:
            for job in ended(replicas[index], now):
                if job.done:
                    jobs.append(job)
                if hopeless(job, now):
                    return Outcome(jobs, replicas, ended=False)
            idle.add(index)
        if index in idle and replicas[index].has_work:
            idle.discard(index)
            heapq.heappush(events, (replicas[index].begin(now), next(ties), index, None))
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
