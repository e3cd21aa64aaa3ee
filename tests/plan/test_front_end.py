"""The API server in the simulation: its queue follows its formula, and clients wait for it, not only for the engine."""

import random

import pytest

from tests.plan.fleets import PerRow, figures, mixed, replicas, run
from vllm_nld.plan.front_end import Costs, FrontEnd
from vllm_nld.plan.replica import Replica
from vllm_nld.plan.traffic import Request, fixed, poisson

STEP = 5e-3
INSTANT = PerRow(prompt=0.0, step=1e-9)


def with_front(costs: Costs, steps: PerRow = INSTANT, processes: int = 1, count: int = 1) -> list[Replica]:
    fleet = replicas(count, steps)
    for replica in fleet:
        replica.front = FrontEnd(costs, processes)
    return fleet


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_reading_requests_is_an_m_d_1_queue(load: float) -> None:
    requests = poisson(load, 40_000, fixed(1), fixed(1), random.Random(5))
    jobs = run(requests, with_front(Costs(request=1.0))).jobs
    waited = sum(job.first - job.request.arrival - 1.0 for job in jobs) / len(jobs)
    assert waited == pytest.approx(load / (2 * (1 - load)), rel=0.1)
    assert sum(job.seen_first > job.first for job in jobs) > len(jobs) / 10, "answers queue with other requests"


def test_a_lone_stream_is_as_late_as_one_piece() -> None:
    costs = Costs(request=2e-3, step=3e-4, piece=5e-4)
    (job,) = run([Request(1.0, 1, 11)], with_front(costs, PerRow(prompt=0.0, step=STEP))).jobs
    assert job.first == pytest.approx(1.0 + 2e-3 + STEP), "the engine gets it when it was read"
    assert job.seen_first - job.first == job.seen_last - job.last == pytest.approx(3e-4 + 5e-4)


@pytest.mark.parametrize(("processes", "expected"), [(1, 0.02), (2, 0.01), (10, STEP)])
def test_streams_fall_behind_if_pieces_take_longer_than_steps(processes: int, expected: float) -> None:
    """Twenty streams at 1 ms a piece need 20 ms of each step, or their share of it; the engine doesn't wait."""
    requests = [Request(0.0, 1, 201) for _ in range(20)]
    jobs = run(requests, with_front(Costs(piece=1e-3), PerRow(prompt=0.0, step=STEP), processes)).jobs
    assert all(job.last - job.first == pytest.approx(200 * STEP) for job in jobs)
    assert all((job.seen_last - job.seen_first) / 200 == pytest.approx(expected, rel=0.01) for job in jobs)


def test_without_costs_clients_see_what_the_engine_has() -> None:
    jobs = run(mixed(seed=1), replicas(2, PerRow(1e-3, 1e-4, STEP), "linear")).jobs
    assert all((job.seen_first, job.seen_last) == (job.first, job.last) for job in jobs)


def test_slower_front_ends_are_never_faster_and_nothing_is_lost() -> None:
    requests, found = mixed(seed=3, rate=12.0), []
    for piece in (0.0, 1e-4, 1e-3):
        outcome = run(requests, with_front(Costs(2e-3, 1e-4, piece), PerRow(1e-3, 1e-4, STEP), count=2))
        assert sorted(job.request for job in outcome.jobs) == requests
        assert all(job.first < job.seen_first <= job.seen_last and job.last < job.seen_last for job in outcome.jobs)
        assert not any(replica.outstanding for replica in outcome.replicas)
        found.append(figures(outcome).p95["latency"])
    assert found == sorted(found)


def test_bad_costs_are_named() -> None:
    with pytest.raises(ValueError, match="seconds per piece can't be negative"):
        Costs(piece=-1.0)
    with pytest.raises(ValueError, match="at least 1 process, not 0"):
        FrontEnd(processes=0)
