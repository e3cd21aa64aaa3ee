"""The judge: one actor that decides the canary's share for all routers.

Each second every router reports its settings, its outcomes and the state that it obeys (`sync`), and the canary's
replicas are asked for their counts of drafts. `rollout` decides; the routers get the new state with their next report.
Judge and routers each keep the state, and the judge writes it to a file (`memory`): a judge that starts reads it there
and asks every running router before it begins a run.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.exceptions import ActorDiedError, RayError
from ray.serve.exceptions import RayServeException

from nld_serve.memory import Memory, of_application
from nld_serve.metrics import RouterMetrics
from nld_serve.rollout import Finding, Phase, State, advance, begin, findings, later
from nld_serve.settings import Settings
from nld_serve.window import Increments, Tally, Window

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

logger = logging.getLogger("ray.serve")

PERIOD = 1.0  # seconds between decisions, and between a router's reports
OUTDATED = 10.0  # seconds after which settings that no router reports any more are not the latest
NO_LIMITS: list[Finding] = []


@dataclass(slots=True)
class Report:
    """What a router tells the judge: its settings, the state that it obeys, and what happened since its last report."""

    settings: Settings
    state: State | None = None
    tallies: dict[str, Tally] = field(default_factory=dict)
    failovers: Counter[str] = field(default_factory=Counter)


class Judge:
    """A Serve deployment's callable, of which there is one."""

    def __init__(
        self,
        canary: "DeploymentHandle | None",
        routers: "DeploymentHandle | str | None" = "router",
        memory: Memory | str | None = None,
    ) -> None:
        """canary, routers: the deployments; routers by their name, because they have handles of the judge.

        memory: where it keeps its state; as a word, the folder that the application's arguments name.
        """
        self.canary = canary
        self.routers = routers
        self.memory = of_application(memory) if isinstance(memory, str) else memory
        self.begun = routers is None  # whether it has begun a run, or taken one over
        self.settings = Settings()
        self.reported = 0.0  # when a router had these settings last
        self.state = begin(self.settings, time.time())
        self.window = Window()
        self.increments = Increments()
        self.metrics = RouterMetrics()
        self.requests = 0  # of the canary since the last decision
        self.found = NO_LIMITS
        self.decided = 0.0
        self.deciding = asyncio.Lock()

    async def sync(self, report: Report, now: float | None = None) -> State:
        """Take a router's report; returns the state to obey."""
        now = time.time() if now is None else now
        await self.obey(report.settings, report.state, now)
        for name, tally in report.tallies.items():
            self.window.add(now, name, tally)
            self.metrics.count(name, tally)
        if canary := report.tallies.get("canary"):
            self.requests += canary.requests
        for reason, count in report.failovers.items():
            self.metrics.failovers.labels(reason).inc(count)
        if not self.deciding.locked() and now - self.decided >= PERIOD / 2:
            async with self.deciding:
                self.decided = now
                self.decide(await self.counts(), now)
        return self.state

    async def obey(self, settings: Settings, state: State | None, now: float) -> None:
        """Begin another run if the settings ask for one; take over a state that is further on than ours."""
        if settings.generation < self.settings.generation and now - self.reported < OUTDATED:
            return  # of a router that does not have the new settings yet
        self.settings, self.reported = settings, now
        states = [self.state, state]
        if settings.run != self.state.run and not self.begun:
            states += await self.remembered()
        known = [one for one in states if one is not None and one.run == settings.run]
        if known:
            self.become(functools.reduce(later, known))
        elif self.begun:
            self.window, self.requests = Window(), 0
            self.become(begin(settings, now))

    async def remembered(self) -> list[State]:
        """What the file and every router remember. Until all of them have said it, this judge begins no run."""
        routers = serve.get_deployment_handle(self.routers) if isinstance(self.routers, str) else self.routers
        assert routers is not None
        answers: list[Any] = []
        written = self.memory.read() if self.memory else None
        with contextlib.suppress(TimeoutError, RayError, RayServeException):  # none is running: they are about to start
            answers = await routers.broadcast("remembered").results_async(timeout_s=PERIOD, return_exceptions=True)
            answers = [answer for answer in answers if not isinstance(answer, ActorDiedError)]  # nothing to remember
            self.begun = self.begun or not any(isinstance(answer, BaseException) for answer in answers)
        return [answer for answer in (written, *answers) if isinstance(answer, State)]

    def decide(self, counts: Mapping[str, Counter[str]], now: float) -> None:
        """One step of the state machine."""
        self.window.add(now, "canary", Tally(drafts=self.increments.of(dict(counts))))
        limits = self.settings.rollback
        length = limits.window_s if limits else 0.0
        canary, stable = (self.window.sum(now, name, length) for name in ("canary", "stable"))
        self.found = findings(canary, stable, limits) if limits else NO_LIMITS
        self.become(advance(self.state, self.settings, self.found, self.requests, now))
        self.requests = 0
        self.metrics.show(self.state, self.settings.canary_share, self.found)

    def become(self, state: State) -> None:
        """Take over a state, and say what is new about it."""
        old, self.state = self.state, state
        if self.memory and (state.run, state.phase, state.share) != (old.run, old.phase, old.share):
            self.memory.write(state)
        if state.reason and not old.reason:
            dry_run = state.phase is not Phase.ROLLED_BACK
            for finding in self.found:
                if finding.breached:
                    self.metrics.rollbacks.labels(finding.criterion, str(dry_run).lower()).inc()
            verb = "would be rolled back (dry run)" if dry_run else "is rolled back: stable gets all requests"
            logger.error("The canary at a share of %g %s: %s", old.share, verb, state.reason)
        elif (state.phase, state.share) != (old.phase, old.share):
            logger.warning("The canary's share is %g, was %g (%s).", state.share, old.share, state.phase)

    async def counts(self) -> dict[str, Counter[str]]:
        """The canary's counts of drafts, by replica; empty while it has none."""
        if self.canary is None or self.state.share == 0:
            return {}
        with contextlib.suppress(Exception):  # whatever became of a replica: the next look is soon
            answers = await self.canary.broadcast("counts").results_async(timeout_s=5, return_exceptions=True)
            return dict(answer for answer in answers if not isinstance(answer, BaseException))
        return {}

    async def status(self) -> dict[str, Any]:
        """For people: what the canary does and why."""
        return {
            "phase": self.state.phase.value,
            "share": self.state.share,
            "configured_share": self.settings.canary_share,
            "generation": self.settings.generation,
            "seconds_at_this_share": round(time.time() - self.state.since),
            "reason": self.state.reason,
            "criteria": {
                one.criterion: {"value": one.value, "limit": one.limit, "breached": one.breached} for one in self.found
            },
        }

    async def text(self) -> bytes:
        """The metrics."""
        return self.metrics.text()
