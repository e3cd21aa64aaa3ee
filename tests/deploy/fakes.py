"""Deployment handles without Ray: each request takes the next of a handle's behaviors, and the last one for ever."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from nld_serve.replica import ACCEPTED, Head

Behavior = Callable[[], AsyncIterator[Any]]


class Answer:
    """A DeploymentResponseGenerator."""

    def __init__(self, items: AsyncIterator[Any]) -> None:
        self.items = items
        self.cancelled = False

    def __aiter__(self) -> "Answer":
        return self

    async def __anext__(self) -> Any:
        return await anext(self.items)

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """A DeploymentHandle of a replica."""

    def __init__(self, *behaviors: Behavior) -> None:
        self.behaviors = list(behaviors)
        self.answers: list[Answer] = []

    def options(self, **options: Any) -> "Handle":
        return self

    def remote(self, *call: Any) -> Answer:
        behavior = self.behaviors.pop(0) if len(self.behaviors) > 1 else self.behaviors[0]
        self.answers.append(Answer(behavior()))
        return self.answers[-1]


def answering(
    *pieces: bytes, status: int = 200, kind: str = "application/json", then: Exception | None = None
) -> Behavior:
    """Answers, and then fails if an exception is given: before the head if there are no pieces."""

    async def items() -> AsyncIterator[Any]:
        yield ACCEPTED
        if pieces:
            yield Head(status, [("content-type", kind)])
        for piece in pieces:
            yield piece
        if then is not None:
            raise then

    return items


def refusing(error: Exception) -> Behavior:
    """Fails before a replica takes the request."""

    async def items() -> AsyncIterator[Any]:
        raise error
        yield

    return items


async def silent() -> AsyncIterator[Any]:
    """No replica takes the request."""
    await asyncio.sleep(60)
    yield ACCEPTED


async def slow() -> AsyncIterator[Any]:
    """Takes the request, and has no token for a long time."""
    yield ACCEPTED
    await asyncio.sleep(60)


class Remote:
    """A handle of the judge: its methods with `.remote`, in this process."""

    def __init__(self, judge: Any) -> None:
        self._judge = judge

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._judge, name)
        return type("Method", (), {"remote": staticmethod(method)})


class Broadcast:
    """A handle whose replicas give the next results to each call, and an exception if no call can be made."""

    def __init__(self, *results: list[Any] | Exception) -> None:
        self.results = list(results)

    def broadcast(self, method: str) -> "Broadcast":
        return self

    async def results_async(self, **options: Any) -> list[Any]:
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result
