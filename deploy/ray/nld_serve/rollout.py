"""The canary's state machine: share by share upwards, and out when a criterion is breached. No clock, no Ray, no I/O.

           begin                        advance: held long enough, enough requests, nothing breached
    OFF  <------  settings  ------>  FIXED or PROMOTING  ---------------------------------->  PROMOTED
                                           |        advance: a criterion is breached             |
                                           +---------------->  ROLLED_BACK  <--------------------+

A rollback holds until the settings ask for another run: another share, promotion or generation.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from nld_serve.settings import Rollback, Settings
from nld_serve.window import Tally

CRITERIA = ("acceptance_length", "commit_ratio", "error_rate", "latency_ratio")


class Phase(StrEnum):
    OFF = "off"
    FIXED = "fixed"
    PROMOTING = "promoting"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True, slots=True)
class State:
    """Where a run of the canary is.

    run: the run that this is a state of (`Settings.run`).
    since: when this share began, in Unix time.
    requests: how many the canary has had at this share.
    reason: of the rollback, or of the one that a dry run leaves out.
    """

    run: str
    phase: Phase
    share: float
    since: float
    requests: int = 0
    reason: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"the share must be in [0, 1], not {self.share}")
        if (self.share == 0) != (self.phase in (Phase.OFF, Phase.ROLLED_BACK)):
            raise ValueError(f"a share of {self.share} contradicts the phase {self.phase}")
        if self.phase is Phase.ROLLED_BACK and not self.reason:
            raise ValueError("a rollback needs a reason")


@dataclass(frozen=True, slots=True)
class Finding:
    """The value of a criterion and its limit, of which it must be on the right side."""

    criterion: str
    value: float
    limit: float
    at_least: bool  # the limit is a floor

    @property
    def breached(self) -> bool:
        return self.value < self.limit if self.at_least else self.value > self.limit

    def __str__(self) -> str:
        return f"{self.criterion} {self.value:.3g} {'<' if self.at_least else '>'} {self.limit:g}"


def findings(canary: Tally, stable: Tally, limits: Rollback) -> list[Finding]:
    """The criteria that have a limit and enough data."""
    found = []

    def judge(criterion: str, value: float, limit: float | None, at_least: bool) -> None:
        if limit is not None:
            found.append(Finding(criterion, value, limit, at_least))

    drafts = canary.drafts
    if drafts["verified_blocks"] >= limits.min_blocks:
        length = 1 + drafts["verified_drafts"] / drafts["verified_blocks"]
        judge("acceptance_length", length, limits.min_acceptance_length, True)
    if drafts["blocks"] >= limits.min_blocks and drafts["drafted"]:
        judge("commit_ratio", drafts["accepted"] / drafts["drafted"], limits.min_commit_ratio, True)
    if canary.requests >= limits.min_requests:
        judge("error_rate", canary.errors / canary.requests, limits.max_error_rate, False)
    if min(canary.seconds.total(), stable.seconds.total()) >= limits.min_requests:
        judge("latency_ratio", canary.p95_at_least / stable.p95, limits.max_latency_ratio, False)
    return found


def begin(settings: Settings, now: float) -> State:
    """The first state of the run that the settings ask for."""
    share = settings.canary_share
    if share == 0:
        return State(settings.run, Phase.OFF, 0.0, now)
    phase = Phase.FIXED
    if settings.promotion:
        phase = Phase.PROMOTING if next_step(settings, share) is not None else Phase.PROMOTED
    return State(settings.run, phase, share, now)


def next_step(settings: Settings, share: float) -> float | None:
    """The smallest step of the promotion above the share."""
    steps = settings.promotion.steps if settings.promotion else []
    return next((step for step in steps if step > share), None)


def advance(state: State, settings: Settings, found: list[Finding], requests: int, now: float) -> State:
    """The next state, after `requests` more requests of the canary and with what was found in the latest window."""
    if state.phase in (Phase.OFF, Phase.ROLLED_BACK):
        return state
    reason = ", ".join(str(finding) for finding in found if finding.breached)
    if reason and settings.rollback and not settings.rollback.dry_run:
        return State(state.run, Phase.ROLLED_BACK, 0.0, now, reason=reason)
    state = replace(state, requests=state.requests + requests, reason=reason)
    if reason:  # a dry run: the share stays, and is held for the whole time again
        return replace(state, requests=0, since=now)
    promotion, step = settings.promotion, next_step(settings, state.share)
    if state.phase is not Phase.PROMOTING or promotion is None or step is None:
        return state
    if now - state.since < promotion.hold_s or state.requests < promotion.min_requests:
        return state
    phase = Phase.PROMOTING if next_step(settings, step) is not None else Phase.PROMOTED
    return State(state.run, phase, step, now)


def later(one: State, other: State | None) -> State:
    """The state of a run that is further on. Routers and judge remind each other of it after one of them restarts."""
    if other is None or other.run != one.run:
        return one
    return max(one, other, key=lambda state: (state.phase is Phase.ROLLED_BACK, state.share))
