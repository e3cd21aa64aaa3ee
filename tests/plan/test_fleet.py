"""The simulation: requests are conserved, queues follow their formulas, and results depend on the seed only."""

import random

import pytest

from tests.plan.fleets import HALF, PerRow, figures, mixed, queue, replicas, run, steady
from vllm_nld.plan.fleet import ROUTERS
from vllm_nld.plan.policies import POLICIES
from vllm_nld.plan.replica import Limits, Replica
from vllm_nld.plan.traffic import Request, exponential, fixed, poisson

STEPS = PerRow(prompt=1e-3, row=1e-4, step=5e-3)
TIGHT = {"max_num_seqs": 6, "max_num_batched_tokens": 40, "kv_tokens": 140}


@pytest.mark.parametrize("mode", POLICIES)
@pytest.mark.parametrize("limits", [{}, TIGHT], ids=["roomy", "tight"])
@pytest.mark.parametrize("routing", ROUTERS)
def test_every_request_ends_once_with_all_its_tokens(mode: str, limits: dict[str, int], routing: str) -> None:
    requests, fleet = mixed(seed=1), replicas(3, STEPS, mode, **limits)
    outcome = run(requests, fleet, routing)
    assert sorted(job.request for job in outcome.jobs) == requests
    assert all(job.made == job.request.output for job in outcome.jobs)
    assert all(job.request.arrival < job.first <= job.last for job in outcome.jobs)
    assert sum(replica.emitted for replica in fleet) == sum(request.output for request in requests)
    assert not any(replica.has_work or replica._kv for replica in fleet), "nothing is left behind"


def test_a_full_cache_preempts_and_all_still_end() -> None:
    requests = [Request(0.0, 10, 60) for _ in range(8)]
    outcome = run(requests, replicas(1, STEPS, "linear", kv_tokens=200))
    assert len(outcome.jobs) == 8
    assert sum(job.preempted for job in outcome.jobs) > 0


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_constant_service_is_an_m_d_1_queue(load: float) -> None:
    requests = poisson(load, 40_000, fixed(1), fixed(1), random.Random(5))
    expected = load / (2 * (1 - load))
    assert queue(requests, servers=1, service=1.0) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_exponential_service_is_an_m_m_1_queue(load: float) -> None:
    """Random routing keeps each replica of several one as well."""
    requests = poisson(2 * load, 40_000, exponential(100.0), fixed(1), random.Random(6))
    expected = load / (1 - load)
    assert queue(requests, servers=2, service=0.01) == pytest.approx(expected, rel=0.1)


def test_knowing_the_queues_beats_chance() -> None:
    requests = poisson(3.2, 4_000, exponential(100.0), fixed(1), random.Random(7))
    waits = [queue(requests, 4, 0.01, routing) for routing in ("least_loaded", "two_choices", "random")]
    assert waits == sorted(waits)
    assert waits[2] > 2 * waits[0]


@pytest.mark.parametrize("mode", ["linear", "auto"])
def test_the_same_seed_gives_the_same_result(mode: str) -> None:
    def latencies(seed: int) -> list[float]:
        return [job.last for job in run(mixed(seed=2), replicas(2, STEPS, mode), "two_choices", seed).jobs]

    assert latencies(0) == latencies(0)
    assert latencies(0) != latencies(1)


def test_more_gpus_are_never_slower() -> None:
    requests = mixed(seed=3, rate=12.0)
    found = [figures(run(requests, replicas(count, STEPS, "linear"))).p95["latency"] for count in (1, 2, 4, 8)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 2 * found[-1]


@pytest.mark.parametrize(("mode", "rows"), [("ar", 1), ("linear", 16)])
def test_a_lone_request_takes_its_rounds(mode: str, rows: int) -> None:
    """One step for the prompt, then one per round, which drafts a block and verifies it."""
    (job,) = run([Request(0.0, 7, 2001)], replicas(1, STEPS, mode)).jobs
    assert job.first == pytest.approx(5e-3 + 7e-3)
    assert job.last - job.first == pytest.approx(job.rounds * (5e-3 + rows * 1e-4))
    if mode == "ar":
        assert job.rounds == 2000
    else:
        assert 2000 / job.rounds == pytest.approx(HALF.tokens(8), rel=0.1)


def test_the_real_controller_drafts_when_alone_and_not_when_rows_are_dear() -> None:
    cheap, dear = PerRow(1e-3, row=1e-7, step=1e-2), PerRow(1e-3, row=1e-2, step=1e-4)
    lengths = [
        figures(run(steady(0.5, 40.0, 10, 60), replicas(1, steps, "auto")), 40.0).acceptance_length
        for steps in (cheap, dear)
    ]
    assert lengths[0] > 1.7 and lengths[1] < 1.1, "trials go on in both cases"


def test_a_fleet_that_cannot_keep_up_says_so() -> None:
    slow, fast = (figures(run(steady(10.0, 60.0, 10, 10), replicas(1, PerRow(prompt)))) for prompt in (0.02, 0.001))
    assert slow.saturated and not fast.saturated


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1, not 0"),
        ({"kv_tokens": -5}, "kv_tokens must be at least 1, not -5"),
    ],
)
def test_bad_limits_are_named(limits: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Limits(**limits)


def test_what_could_never_run_is_refused() -> None:
    with pytest.raises(ValueError, match="doesn't fit into the KV cache, which holds 50"):
        run([Request(0.0, 40, 20)], replicas(1, STEPS, kv_tokens=50))
    with pytest.raises(ValueError, match="max_num_batched_tokens 4 is less than a block of 8"):
        Replica(Limits(max_num_batched_tokens=4), POLICIES["linear"], 8, STEPS, HALF)
