"""The ingress: gives each request to the stable or to the canary deployment.

The canary's share is `user_config: {canary_share: 0.1}`, which Serve changes in place: no restart, no lost request.
`GET /metrics/targets` lists every replica of both deployments, in the form of Prometheus's `http_sd_configs`.
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
ABSENT = "no replica of this deployment could be started: roll the canary back, or see the status of the application"
LOST = "the replica ended while it ran this request: send it again"


class Share:
    """Hands out the canary's share exactly: of any N requests in a row, share * N of them, give or take one."""

    def __init__(self) -> None:
        self.value = 0.0
        self._credit = 0.0

    def set(self, value: Any) -> None:
        """Raises ValueError for anything but a number in [0, 1]."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"user_config.canary_share must be a number in [0, 1], not {value!r}")
        self.value = float(value)
        self._credit = 0.0

    def take(self) -> bool:
        """Whether the next request is one of the canary's."""
        self._credit += self.value
        if self._credit < 1 - 1e-9:
            return False
        self._credit -= 1
        return True


class Router:
    """The callable of the ingress deployment."""

    def __init__(self, stable: DeploymentHandle, canary: DeploymentHandle) -> None:
        self.deployments = {"stable": stable, "canary": canary}
        self.share = Share()

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve at start-up and whenever user_config changes."""
        unknown = user_config.keys() - {"canary_share"}
        if unknown:
            raise ValueError(f"user_config.{min(unknown)} is unknown; known is canary_share")
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
        """One target group for each deployment."""
        return [
            {"targets": await addresses(handle), "labels": {"deployment": name}}
            for name, handle in self.deployments.items()
        ]


async def addresses(handle: DeploymentHandle) -> list[str]:
    """Where the metrics of a deployment's running replicas are."""
    try:
        return await handle.broadcast("target").results_async()
    except DeploymentUnavailableError:
        return []  # none runs now


async def body(answer: Any, streamed: bool) -> AsyncIterator[bytes]:
    """The pieces of an answer. The request is aborted where the client has gone."""
    try:
        async for piece in answer:
            yield piece
    except (RayError, RayServeException) as reason:
        if not streamed:
            raise  # the connection breaks, as the length of the body can no longer be met
        logger.warning("An answer broke off: %r", reason)
        yield f"data: {json.dumps(error_object(LOST))}\n\n".encode()
    finally:
        answer.cancel()


def error(message: str) -> Response:
    """An error as OpenAI clients read it; they send the request again by themselves on a 503."""
    return JSONResponse(error_object(message), 503, {"retry-after": "1"})


def error_object(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "service_unavailable", "param": None, "code": 503}}
