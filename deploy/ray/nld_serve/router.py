"""The ingress: sends each request to the stable or the canary deployment.

`cohorts` says which one a client belongs to, `judge` decides the canary's share, `settings` reads `user_config`. A
request of the canary that has no first token yet goes to stable if the canary refuses or loses it.

`GET /metrics/targets` lists every replica in Prometheus's `http_sd_configs` format, `/metrics` gives the router's own
metrics, and `/canary` what the canary does and why.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from nld_serve.cohorts import Share, cohort
from nld_serve.judge import PERIOD, Report
from nld_serve.opened import MESSAGES, Opened, Refused, error_object, open_answer
from nld_serve.rollout import State
from nld_serve.settings import Settings, read
from nld_serve.window import Tally

logger = logging.getLogger("ray.serve")

TIMEOUT = 10.0  # seconds for a report
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Router:
    """The ingress deployment's callable."""

    def __init__(self, stable: DeploymentHandle, canary: DeploymentHandle, judge: DeploymentHandle) -> None:
        self.deployments = {"stable": stable, "canary": canary}
        self.judge = judge
        self.settings = Settings()
        self.state: State | None = None  # of the judge; nobody gets the canary before it has answered
        self.share = Share()
        self.waiting = 0  # requests without a first token from the canary
        self.report = Report(self.settings)
        self.reporter: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve at start-up and whenever user_config changes. Raises ValueError for an invalid config."""
        self.settings = read(user_config)
        await self.send_report()  # a router that starts knows the share before it gets requests
        if self.reporter is None:
            self.reporter = asyncio.create_task(self.report_forever())

    @property
    def canary_share(self) -> float:
        """The share of the run that the settings ask for; 0 as long as the judge has not begun it."""
        return self.state.share if self.state and self.state.run == self.settings.run else 0.0

    async def report_forever(self) -> None:
        while True:
            await asyncio.sleep(PERIOD)
            await self.send_report()

    async def send_report(self) -> None:
        """Report to the judge, and obey its answer. A report that does not arrive becomes part of the next one."""
        report, self.report = self.report, Report(self.settings)
        report.settings, report.state = self.settings, self.state
        try:
            self.state = await asyncio.wait_for(self.judge.sync.remote(report), TIMEOUT)
        except (TimeoutError, RayError, RayServeException) as reason:
            logger.warning("The judge does not answer (%r): the canary's share stays.", reason)
            for name, tally in report.tallies.items():
                self.tally(name).merge(tally)
            self.report.failovers += report.failovers

    async def remembered(self) -> State | None:
        """The state that it obeys; a judge that starts asks for it."""
        return self.state

    def tally(self, deployment: str) -> Tally:
        return self.report.tallies.setdefault(deployment, Tally())

    async def __call__(self, request: Request) -> Response:
        if request.url.path == "/metrics/targets":
            return JSONResponse(await self.targets(request.headers.get("host", "")))
        if request.url.path == "/metrics":
            return Response(await self.judge.text.remote(), media_type=METRICS_TYPE)
        if request.url.path == "/canary":
            return JSONResponse(await self.judge.status.remote())
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        body = await request.body()
        call = (request.method, path, request.headers.items(), body)
        deployment, reason = "stable", ""
        if self.belongs_to_canary(request, body):
            deployment, begin = "canary", time.monotonic()
            try:
                opened = await self.ask_canary(call)
            except Refused as refused:
                logger.warning("The canary did not answer a request: %s", refused)
                if refused.reason != "queue":
                    self.tally("canary").add(failed=True)
                if not self.settings.failover.enabled:
                    return refused.response("canary")
                deployment, reason = "stable", refused.reason
                self.report.failovers[reason] += 1
        if deployment == "stable":
            begin = time.monotonic()
            try:
                opened = await open_answer(self.deployments["stable"], call)
            except Refused as refused:
                self.tally("stable").add(failed=True)
                return refused.response("stable")
        response = StreamingResponse(self.body(deployment, opened, request, begin), opened.status)
        response.raw_headers = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in opened.headers]
        response.headers["x-nld-deployment"] = deployment
        if reason:
            response.headers["x-nld-failover"] = reason
        return response

    def belongs_to_canary(self, request: Request, body: bytes) -> bool:
        share = self.canary_share
        if share == 0:
            return False
        point = cohort(request.headers, body, self.settings.cohort_by)
        return self.share.take(share) if point is None else point < share

    async def ask_canary(self, call: tuple[Any, ...]) -> Opened:
        """The canary's answer from its first token on. Raises Refused if stable should give it."""
        failover = self.settings.failover
        if failover.enabled and self.waiting >= failover.queue_limit:
            raise Refused("queue", f"{self.waiting} requests wait for their first token from the canary")
        self.waiting += 1
        try:
            return await open_answer(
                self.deployments["canary"], call, failover.accept_s if failover.enabled else None, failover.enabled
            )
        finally:
            self.waiting -= 1

    async def body(
        self, deployment: str, opened: Opened, request: Request, begin: float
    ) -> AsyncGenerator[bytes, None]:
        """The answer's body. Counts how the request ended; one that the client gave up is not counted."""
        try:
            async with contextlib.aclosing(opened.pieces()) as pieces:
                async for piece in pieces:
                    yield piece
        except (RayError, RayServeException) as reason:
            logger.warning("A response was cut off: %r", reason)
            self.tally(deployment).add(failed=True)
            if not opened.streamed:
                raise  # break the connection, because the announced content length cannot be met any more
            yield f"data: {json.dumps(error_object(MESSAGES['lost']))}\n\n".encode()
        else:
            answered = request.method == "POST" and opened.status == 200
            self.tally(deployment).add(time.monotonic() - begin if answered else None, failed=opened.failed)

    async def targets(self, host: str) -> list[dict[str, Any]]:
        """One target group per deployment, and the router by the address at which Prometheus has reached it."""
        groups: list[dict[str, Any]] = [
            {"targets": await addresses(handle), "labels": {"deployment": name}}
            for name, handle in self.deployments.items()
        ]
        return [*groups, {"targets": [host], "labels": {"role": "router"}}]


async def addresses(handle: DeploymentHandle) -> list[str]:
    """host:port of each running replica of a deployment."""
    with contextlib.suppress(DeploymentUnavailableError):  # no replica is running
        return await handle.broadcast("target").results_async()
    return []
