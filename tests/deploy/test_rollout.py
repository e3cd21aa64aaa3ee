"""The canary's state machine, its settings, cohorts and window: pure functions, no Ray."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nld_serve.cohorts import Share, cohort, point
from nld_serve.rollout import CRITERIA, Finding, Phase, State, advance, begin, findings, later, next_step
from nld_serve.settings import Promotion, Rollback, Settings, read
from nld_serve.window import GROWTH, Increments, Tally, Window

STEPS = Settings(
    canary_share=0.05, promotion=Promotion(steps=[0.25, 0.5], hold_s=100, min_requests=10), rollback=Rollback()
)
BAD = [Finding("acceptance_length", 1.1, 1.5, at_least=True)]
GOOD = [Finding("acceptance_length", 6.8, 1.5, at_least=True)]


def test_promotion_goes_step_by_step() -> None:
    """Each share is held for its time and for its requests, whichever takes longer."""
    state = begin(STEPS, now=0)
    assert (state.phase, state.share) == (Phase.PROMOTING, 0.05)
    state = advance(state, STEPS, GOOD, requests=9, now=100)
    assert state.share == 0.05, "a request too few"
    state = advance(state, STEPS, GOOD, requests=1, now=101)
    assert (state.phase, state.share, state.requests) == (Phase.PROMOTING, 0.25, 0)
    state = advance(state, STEPS, GOOD, requests=1000, now=200)
    assert state.share == 0.25, "a second too early"
    state = advance(state, STEPS, [], requests=0, now=201)
    assert (state.phase, state.share) == (Phase.PROMOTED, 0.5)
    assert advance(state, STEPS, GOOD, 1000, now=1e9).share == 0.5
    assert advance(state, STEPS, BAD, 1, now=1e9).phase is Phase.ROLLED_BACK, "a promoted canary is watched as well"


def test_rollback_holds_until_another_run() -> None:
    state = advance(begin(STEPS, 0), STEPS, BAD, 5, now=10)
    assert (state.phase, state.share, state.reason) == (Phase.ROLLED_BACK, 0, "acceptance_length 1.1 < 1.5")
    assert advance(state, STEPS, GOOD, 0, now=1e9) == state
    stricter = STEPS.model_copy(update={"rollback": Rollback(min_acceptance_length=3)})
    assert stricter.run == state.run, "limits do not begin another run"
    for change in {"generation": 1}, {"canary_share": 0.1}, {"promotion": None}:
        assert STEPS.model_copy(update=change).run != state.run


def test_dry_run_keeps_the_share_and_holds_the_promotion() -> None:
    dry = STEPS.model_copy(update={"rollback": Rollback(dry_run=True)})
    state = advance(begin(dry, 0), dry, BAD, 50, now=99)
    assert (state.phase, state.share, state.reason) == (Phase.PROMOTING, 0.05, "acceptance_length 1.1 < 1.5")
    state = advance(state, dry, GOOD, 50, now=150)
    assert (state.share, state.reason) == (0.05, ""), "held again from the breach on"
    assert advance(state, dry, GOOD, 0, now=199).share == 0.25


def test_share_without_promotion_stays() -> None:
    fixed = Settings(canary_share=0.1)
    state = begin(fixed, 0)
    assert state.phase is Phase.FIXED and advance(state, fixed, GOOD, 10**6, now=1e9).share == 0.1
    assert begin(Settings(), 0).phase is Phase.OFF
    assert advance(begin(Settings(), 0), Settings(), BAD, 1, 1).phase is Phase.OFF
    top = Settings(canary_share=0.5, promotion=Promotion(steps=[0.25, 0.5]))
    assert begin(top, 0).phase is Phase.PROMOTED


FOUND = st.sampled_from([[], GOOD, BAD])
EVENTS = st.lists(st.tuples(FOUND, st.integers(0, 20), st.floats(0, 200)), max_size=30)


@given(EVENTS)
def test_share_only_grows_until_it_falls_to_zero(events: list[tuple[list[Finding], int, float]]) -> None:
    state, now = begin(STEPS, 0), 0.0
    for found, requests, passed in events:
        now += passed
        old, state = state, advance(state, STEPS, found, requests, now)
        assert state.share >= old.share or state.phase is Phase.ROLLED_BACK
        assert (state.phase is Phase.ROLLED_BACK) == (found is BAD or old.phase is Phase.ROLLED_BACK)
        assert state.share in (0, 0.05, 0.25, 0.5)
        restarted = later(begin(STEPS, now), state)
        assert (restarted.phase, restarted.share) == (state.phase, state.share), (
            "a router reminds a judge that restarts"
        )
        assert later(state, begin(STEPS, now)) == state


@pytest.mark.parametrize(
    "wrong",
    [
        {"share": 1.5},
        {"share": 0.0},
        {"phase": Phase.ROLLED_BACK, "share": 0.0},
        {"phase": Phase.OFF},
    ],
)
def test_states_that_contradict_themselves(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        State(**{"run": "", "phase": Phase.FIXED, "share": 0.1, "since": 0.0} | wrong)


def tally(requests: int = 0, errors: int = 0, seconds: float = 1.0, **drafts: int) -> Tally:
    sums = Tally(drafts=Counter(drafts))
    for number in range(requests):
        sums.add(None if number < errors else seconds, failed=number < errors)
    return sums


LIMITS = Rollback(min_requests=20, min_blocks=100, min_commit_ratio=0.3)


@pytest.mark.parametrize(
    ("canary", "breached"),
    [
        pytest.param(tally(20, 1), "", id="one error of twenty"),
        pytest.param(tally(20, 2), "error_rate", id="two errors of twenty"),
        pytest.param(tally(19, 19), "", id="too few requests"),
        pytest.param(tally(20, seconds=1.7), "", id="a little slower"),
        pytest.param(tally(20, seconds=2.4), "latency_ratio", id="slow"),
        pytest.param(tally(verified_blocks=100, verified_drafts=50), "", id="acceptance length at the floor"),
        pytest.param(tally(verified_blocks=100, verified_drafts=49), "acceptance_length", id="drafts badly"),
        pytest.param(tally(verified_blocks=99), "", id="too few blocks"),
        pytest.param(tally(blocks=100, drafted=3100, accepted=929), "commit_ratio", id="commits little"),
        pytest.param(tally(blocks=100, drafted=3100, accepted=930), "", id="commits enough"),
    ],
)
def test_criteria(canary: Tally, breached: str) -> None:
    found = findings(canary, tally(20), LIMITS)
    assert [finding.criterion for finding in found if finding.breached] == ([breached] if breached else [])
    assert {finding.criterion for finding in found} <= set(CRITERIA)


def test_null_turns_a_criterion_off() -> None:
    off = Rollback(min_acceptance_length=None, max_error_rate=None, max_latency_ratio=None)
    assert findings(tally(100, 100, verified_blocks=1000), tally(100), off) == []


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=200))
def test_p95_is_at_most_a_bucket_too_large(seconds: list[float]) -> None:
    sums = Tally()
    for value in seconds:
        sums.add(value)
    exact = sorted(seconds)[-(-95 * len(seconds) // 100) - 1]
    assert exact <= sums.p95 * (1 + 1e-9) and sums.p95 <= exact * GROWTH * (1 + 1e-9)


def latencies(seed: int, slower: float) -> Iterator[tuple[float, list[Finding]]]:
    """Twenty minutes at a request per second and deployment: what is breached, each five seconds."""
    random, window = Random(seed), Window()
    for now in range(1200):
        for name, factor in ("stable", 1.0), ("canary", slower):
            one = Tally()
            one.add(factor * random.lognormvariate(0, 0.8))  # P95 is 3.7 times the median
            window.add(now, name, one)
        if now % 5 == 0:
            canary, stable = (window.sum(now, name, LIMITS.window_s) for name in ("canary", "stable"))
            yield now, [one for one in findings(canary, stable, LIMITS) if one.breached]


def test_good_canary_is_not_slow_by_luck() -> None:
    """Nor by its first requests, and one that is three times as slow is found within two minutes."""
    for seed in range(5):
        assert not any(found for _, found in latencies(seed, slower=1))
        first = next(now for now, found in latencies(seed, slower=3) if found)
        assert first < 120, (seed, first)
    cold = tally(17)
    cold.merge(tally(3, seconds=20.0))
    assert not any(one.breached for one in findings(cold, tally(20), LIMITS))


@pytest.mark.parametrize("count", [20, 60, 1000, 5000])
def test_p95_is_at_least_that_beyond_doubt(count: int) -> None:
    """By the binomial distribution; and not far below with many requests."""
    from scipy.stats import binom

    sums = Tally()
    for number in range(count):
        sums.seconds[number] += 1
    above = count - 1 - round(math.log(sums.p95_at_least, GROWTH))
    assert binom.sf(above, count, 0.05) < 1e-3, "so many lie above P95 hardly ever"
    assert above / count < 0.05 + 6 / math.sqrt(count) * 0.25


def test_window_forgets() -> None:
    window = Window()
    window.add(0, "canary", tally(3, 1))
    window.add(50, "canary", tally(2, blocks=7))
    window.add(50, "stable", tally(5))
    sums = window.sum(60, "canary", length=60)
    assert (sums.requests, sums.errors, sums.drafts["blocks"]) == (5, 1, 7)
    assert window.sum(61, "canary", length=60).requests == 2
    assert window.sum(200, "canary", length=60).requests == 0


def test_increments_of_replicas_that_come_and_go() -> None:
    look = Increments()
    assert not look.of({"a": Counter(blocks=100)}), "what was before is not the canary's"
    assert look.of({"a": Counter(blocks=130), "b": Counter(blocks=5)}) == {"blocks": 30}
    assert look.of({"a": Counter(blocks=2), "b": Counter(blocks=9)}) == {"blocks": 4}, "a has started again"
    assert not look.of({})
    assert not look.of({"a": Counter(blocks=50)})


@given(st.text(min_size=1), st.floats(0, 1), st.floats(0, 1))
def test_growing_share_moves_clients_to_the_canary_only(key: str, share: float, larger: float) -> None:
    share, larger = sorted((share, larger))
    assert not point("user", key) < share or point("user", key) < larger


def test_share_of_many_clients() -> None:
    points = [point("user", f"user-{number}") for number in range(5000)]
    for share in 0.05, 0.5:
        assert abs(sum(one < share for one in points) / 5000 - share) < 0.02
    assert point("user", "ann") != point("header", "ann") != point("api_key", "ann")


BODY = json.dumps({"user": "ann", "messages": [{"role": "user", "content": "hello"}]}).encode()


@pytest.mark.parametrize(
    ("headers", "body", "cohort_by", "expected"),
    [
        ({"x-nld-cohort": "canary"}, BODY, ["header", "user"], 0.0),
        ({"x-nld-cohort": "stable"}, BODY, ["header", "user"], 1.0),
        ({"x-nld-cohort": "team-7"}, BODY, ["header", "user"], point("header", "team-7")),
        ({}, BODY, ["header", "user"], point("user", "ann")),
        ({"x-nld-cohort": "team-7"}, BODY, ["user", "header"], point("user", "ann")),
        ({"authorization": "Bearer k"}, b"{}", ["header", "user"], None),
        ({"authorization": "Bearer k"}, b"{}", ["user", "api_key"], point("api_key", "Bearer k")),
        ({"x-api-key": "k"}, b"{}", ["api_key"], point("api_key", "k")),
        ({"x-nld-cohort": "team-7"}, BODY, [], None),
        ({}, b'{"user"', ["user"], None),
        ({}, b'["user"]', ["user"], None),
        ({}, b'{"user": 5}', ["user"], None),
        ({}, b'{"messages": [{"role": "user"}]}', ["user"], None),
    ],
)
def test_cohort(headers: dict[str, str], body: bytes, cohort_by: list[str], expected: float | None) -> None:
    assert cohort(headers, body, cohort_by) == expected


@given(share=st.floats(0, 1), count=st.integers(0, 300))
def test_share_is_met_after_every_request(share: float, count: int) -> None:
    canary = Share()
    taken = 0
    for requests in range(1, count + 1):
        taken += canary.take(share)
        assert abs(taken - share * requests) < 1 + 1e-6


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        *(({"canary_share": value}, "user_config.canary_share: ") for value in (-0.1, 1.01, "0.5", None, True)),
        ({"canary_share": float("nan")}, "user_config.canary_share: "),
        ({"canary": 0.5}, "user_config.canary is unknown: the settings here are canary_share, generation"),
        ({"rollback": {"min_al": 2}}, "user_config.rollback.min_al is unknown: the settings here are dry_run"),
        ({"rollback": {"min_acceptance_length": 0.5}}, "greater than or equal to 1, not 0.5"),
        ({"rollback": {"max_error_rate": 5}}, "user_config.rollback.max_error_rate: "),
        ({"rollback": {"window_s": 86400}}, "user_config.rollback.window_s: "),
        ({"promotion": {"steps": []}}, "user_config.promotion.steps: "),
        ({"promotion": {"steps": [0.5, 0.25]}}, "steps must grow"),
        ({"promotion": {"steps": [0.5], "hold_s": 0}}, "user_config.promotion.hold_s: "),
        ({"cohort_by": ["cookie"]}, "user_config.cohort_by.0: Input should be 'header', 'user' or 'api_key'"),
        ({"failover": {"queue_limit": -1}}, "user_config.failover.queue_limit: "),
        ({"failover": "off"}, "user_config.failover: "),
    ],
)
def test_wrong_settings_end_in_a_sentence(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as raised:
        read(config)
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


def test_settings_from_yaml() -> None:
    found = read({"canary_share": 1, "promotion": {"steps": [0.25, 1.0]}, "rollback": None})
    assert found.canary_share == 1 and found.rollback is None and next_step(found, 0.25) == 1
    assert read(None) == read({}) == Settings()
