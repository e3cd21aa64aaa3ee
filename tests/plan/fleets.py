"""Simulated fleets whose behavior has a formula."""

import random
from dataclasses import dataclass
from typing import Any

from vllm_nld.plan.acceptance import ANY, Acceptance
from vllm_nld.plan.figures import Figures
from vllm_nld.plan.fleet import ROUTERS, Outcome, simulate
from vllm_nld.plan.policies import POLICIES
from vllm_nld.plan.replica import Limits, Replica
from vllm_nld.plan.steps import Work
from vllm_nld.plan.traffic import Request, fixed, poisson

HALF = Acceptance({ANY: [0.5**place for place in range(1, 8)]})


@dataclass
class PerRow:
    """Step times in proportion to the rows of all forwards."""

    prompt: float = 1.0
    row: float = 0.0
    step: float = 0.0

    def seconds(self, work: Work) -> float:
        return self.step + self.prompt * work.prompt + self.row * (work.verified + work.passes * work.drafted)


def replicas(count: int, steps: Any, mode: str = "ar", **limits: int) -> list[Replica]:
    block = 1 if mode == "ar" else 8
    return [Replica(Limits(**limits), POLICIES[mode], block, steps, HALF) for _ in range(count)]


def run(requests: list[Request], fleet: list[Replica], routing: str = "least_loaded", seed: int = 0) -> Outcome:
    return simulate(requests, fleet, ROUTERS[routing](random.Random(seed)), seed)


def queue(requests: list[Request], servers: int, service: float, routing: str = "random") -> float:
    """Mean seconds in the queue of servers that take one request at a time, `service` seconds per prompt token."""
    outcome = run(requests, replicas(servers, PerRow(service), max_num_seqs=1), routing)
    waits = [job.first - job.request.arrival - service * job.request.prompt for job in outcome.jobs]
    return sum(waits) / len(waits)


def mixed(seed: int, rate: float = 4.0, seconds: float = 60.0) -> list[Request]:
    """Requests of mixed lengths."""
    return poisson(rate, seconds, lambda rng: rng.randint(1, 40), lambda rng: rng.randint(1, 60), random.Random(seed))


def steady(rate: float, seconds: float, prompt: int, output: int) -> list[Request]:
    return poisson(rate, seconds, fixed(prompt), fixed(output), random.Random(3))


def figures(outcome: Outcome, seconds: float = 60.0) -> Figures:
    return Figures.of(outcome, (0.0, seconds), gpus=len(outcome.replicas), overhead=0.0)
