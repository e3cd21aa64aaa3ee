"""An answer of a replica, opened: its head and the first piece of its body are here, so it has a first token.

opened = await open_answer(handle, call, accept_s=2)     # raises Refused
async for piece in opened.pieces(): ...
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.responses import JSONResponse, Response

from nld_serve.replica import Head

MESSAGES = {
    "queue": "every replica's queue is full: send the request again later",
    "unaccepted": "no replica of this deployment is running: roll back the canary or check the application's status",
    "lost": "the replica ended while running this request: send it again",
    "error": "the replica failed while running this request: send it again",
}
ERROR_EVENT = b'data: {"error"'


class Refused(Exception):
    """A deployment gave no first token. `reason` is one of MESSAGES."""

    def __init__(self, reason: str, detail: object) -> None:
        super().__init__(f"{reason} ({detail})")
        self.reason = reason

    def response(self, deployment: str) -> Response:
        """An error in OpenAI's format; OpenAI clients retry by themselves on a 503."""
        headers = {"retry-after": "1", "x-nld-deployment": deployment}
        return JSONResponse(error_object(MESSAGES[self.reason]), 503, headers)


class Opened:
    """An answer from its first piece on. Reading it to its end, or closing it, ends the request in the replica."""

    def __init__(self, answer: Any, head: Head, first: bytes) -> None:
        self.status, self.headers = head
        self.first = first
        self.answer = answer

    @property
    def streamed(self) -> bool:
        return any(value.startswith("text/event-stream") for _, value in self.headers)

    @property
    def failed(self) -> bool:
        """Whether it is an error of the server's: vLLM reports errors of streams as their first event."""
        return self.status >= 500 or (self.streamed and self.first.startswith(ERROR_EVENT))

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The chunks of the body. Aborts the request if the client disconnects."""
        try:
            yield self.first
            async for piece in self.answer:
                yield piece
        finally:
            self.answer.cancel()


async def open_answer(
    handle: DeploymentHandle, call: tuple[Any, ...], accept_s: float | None = None, refuse_errors: bool = False
) -> Opened:
    """Send a request to a deployment and wait for its first token.

    accept_s: how long a replica has to take the request; None waits until there is one.
    refuse_errors: raise Refused for a server's error as well.
    """
    answer = handle.options(method_name="forward", stream=True).remote(*call)
    try:
        await asyncio.wait_for(anext(answer), accept_s)  # the replica's first word is that it has the request
        opened = Opened(answer, await anext(answer), await anext(answer, b""))
    except TimeoutError:
        refused = Refused("unaccepted", f"after {accept_s:g} s")
    except BackPressureError as reason:
        refused = Refused("queue", reason)
    except DeploymentUnavailableError as reason:
        refused = Refused("unaccepted", reason)
    except (RayError, RayServeException) as reason:
        refused = Refused("lost", repr(reason))
    except BaseException:  # the client has gone
        answer.cancel()
        raise
    else:
        if not (refuse_errors and opened.failed):
            return opened
        kind = "queue" if opened.status == 503 else "error"  # vLLM's own queue limits answer 503
        refused = Refused(kind, opened.first[:500].decode(errors="replace"))
    answer.cancel()
    raise refused


def error_object(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "service_unavailable", "param": None, "code": 503}}
