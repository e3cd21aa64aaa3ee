"""One replica: a `vllm serve` process of its own, which lives and dies with the actor around it.

The router calls `forward`, Serve calls `check_health`, Prometheus scrapes the process at the address that `target`
tells. When the process ends, so does the actor, and Serve starts another one.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import httpx
import ray

from vllm_nld.tools.probe import refusal
from vllm_nld.tools.server import free_port

logger = logging.getLogger("ray.serve")

STOP_TIMEOUT = 30  # seconds a server has to end by itself; Serve has let its requests finish before
HOP_BY_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding", "upgrade"}


class Head(NamedTuple):
    """What an answer starts with; the pieces of its body follow."""

    status: int
    headers: list[tuple[str, str]]


class ReplicaOptions(NamedTuple):
    """What a deployment serves: a model, and the flags of `vllm serve`."""

    model: str
    arguments: tuple[str, ...]


class Replica:
    """The callable of a Serve deployment. Ready when its server has answered a one-token request."""

    async def __init__(self, options: ReplicaOptions) -> None:  # type: ignore[misc]  # Serve awaits it
        self.host = ray.util.get_node_ip_address()
        self.port = free_port()
        self.url = f"http://{self.host}:{self.port}"
        self.client = httpx.AsyncClient(base_url=self.url, timeout=None, limits=httpx.Limits(max_connections=None))
        self.process = await asyncio.create_subprocess_exec(
            *command(options, self.host, self.port), env=environment(), start_new_session=True
        )
        self.watcher = asyncio.create_task(self._end_with_server())
        await self._wait_until_it_decodes()

    async def _wait_until_it_decodes(self) -> None:
        for attempt in itertools.count(1):
            reason = await asyncio.to_thread(refusal, self.url, timeout=60)
            if not reason:
                return
            if attempt % 60 == 0:
                logger.warning("vllm serve at %s does not decode yet: %s", self.url, reason)
            await asyncio.sleep(1)

    async def _end_with_server(self) -> NoReturn:
        end(f"ended with status {await self.process.wait()}")

    async def forward(
        self, method: str, path: str, headers: Sequence[tuple[str, str]], body: bytes
    ) -> AsyncIterator[Head | bytes]:
        """Pass a request on. Yields the answer's head, then its body as it comes; a cancelled call aborts it."""
        kept = [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP]
        try:
            async with self.client.stream(method, path, headers=kept, content=body) as answer:
                yield Head(answer.status_code, [item for item in answer.headers.items() if item[0] not in HOP_BY_HOP])
                async for piece in answer.aiter_raw():
                    yield piece
        except httpx.ConnectError:
            end("listens no more")  # it is on its way out

    async def check_health(self) -> None:
        """Raises where the server is not well; Serve replaces the replica after three times."""
        (await self.client.get("/health", timeout=10)).raise_for_status()

    async def target(self) -> str:
        """Where Prometheus finds this replica's metrics."""
        return f"{self.host}:{self.port}"

    async def __del__(self) -> None:
        """Serve calls this after the last request; the kernel ends the process where the actor is killed."""
        self.watcher.cancel()
        await self.client.aclose()
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), STOP_TIMEOUT)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def end(reason: str) -> NoReturn:
    """A replica without a server must not take requests, nor wait for three failed health checks."""
    logger.error("vllm serve %s (its own messages are in this worker's log): ending this replica", reason)
    os._exit(1)


def command(options: ReplicaOptions, host: str, port: int) -> list[str]:
    """`vllm serve`, told by the kernel to end when its parent is gone, however that came."""
    vllm = str(Path(sys.executable).with_name("vllm"))
    return [
        *("setpriv", "--pdeathsig", "TERM", vllm, "serve", options.model),
        *("--host", host, "--port", str(port), *options.arguments),
    ]


def environment() -> dict[str, str]:
    """The actor's own, and the cluster's address for an engine that places its workers by Ray."""
    return {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
