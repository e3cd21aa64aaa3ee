"""The ingress: sends each request to the stable or the canary deployment.

The canary's share is `user_config: {canary_share: 0.1}`, which Serve changes in place without a restart or a lost
request. `GET /metrics/targets` lists every replica of both deployments in Prometheus's `http_sd_configs` format.
"""

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

logger = logging.getLogger("ray.serve")

BUSY = "every replica's queue is full: send the request again later"
ABSENT = "no replica of this deployment could be started: roll back the canary or check the application's status"
LOST = "the replica ended while running this request: send it again"


class Share:
    """Meets the canary's share exactly: of any N consecutive requests it gets share * N, give or take one."""

    def __init__(self) -> None:
        self.value = 0.0
        self._credit = 0.0

    def set(self, value: Any) -> None:
        """Set the share. Raises ValueError for anything but a number in [0, 1]."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"user_config.canary_share must be a number in [0, 1], not {value!r}")
        self.value = float(value)
        self._credit = 0.0

    def take(self) -> bool:
        """Whether the next request goes to the canary."""
        self._credit += self.value
        if self._credit < 1 - 1e-9:
            return False
        self._credit -= 1
        return True


class Router:
    """The ingress deployment's callable."""

    def __init__(self, stable: DeploymentHandle, canary: DeploymentHandle) -> None:
        self.deployments = {"stable": stable, "canary": canary}
        self.share = Share()

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve at start-up and whenever user_config changes. Raises ValueError for an invalid config."""
        unknown = user_config.keys() - {"canary_share"}
        if unknown:
            raise ValueError(f"user_config.{min(unknown)} is unknown: the only setting is canary_share")
        self.share.set(user_config.get("canary_share", 0))

    async def __call__(self, request: Request) -> Response:
        if request.url.path == "/metrics/targets":
            return JSONResponse(await self.targets())
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        name = "canary" if self.share.take() else "stable"
        handle = self.deployments[name].options(method_name="forward", stream=True)
        answer = handle.remote(request.method, path, request.headers.items(), await request.body())
        try:
            head = await anext(answer)
        except BackPressureError:
            return error(BUSY)
        except DeploymentUnavailableError:
            return error(ABSENT)
        except (RayError, RayServeException) as reason:
            logger.warning("A request to %s failed: %r", name, reason)
            return error(LOST)
        pieces = body(answer, streamed=any(value.startswith("text/event-stream") for _, value in head.headers))
        response = StreamingResponse(pieces, head.status)
        response.raw_headers = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in head.headers]
        response.headers["x-nld-deployment"] = name
        return response

    async def targets(self) -> list[dict[str, Any]]:
        """One target group per deployment."""
        return [
            {"targets": await addresses(handle), "labels": {"deployment": name}}
            for name, handle in self.deployments.items()
        ]


async def addresses(handle: DeploymentHandle) -> list[str]:
    """host:port of each running replica of a deployment."""
    try:
        return await handle.broadcast("target").results_async()
    except DeploymentUnavailableError:
        return []  # no replica is running


async def body(answer: Any, streamed: bool) -> AsyncIterator[bytes]:
    """The chunks of a response's body. Aborts the request if the client disconnects."""
    try:
        async for piece in answer:
            yield piece
    except (RayError, RayServeException) as reason:
        if not streamed:
            raise  # break the connection, because the announced content length cannot be met any more
        logger.warning("A response was cut off: %r", reason)
        yield f"data: {json.dumps(error_object(LOST))}\n\n".encode()
    finally:
        answer.cancel()


def error(message: str) -> Response:
    """An error in OpenAI's format; OpenAI clients retry by themselves on a 503."""
    return JSONResponse(error_object(message), 503, {"retry-after": "1"})


def error_object(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "service_unavailable", "param": None, "code": 503}}
