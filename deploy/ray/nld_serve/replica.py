"""A replica: an actor that runs its own `vllm serve` process and ends together with it.

The router calls `forward`, Serve calls `check_health`, and Prometheus scrapes the process at the address that `target`
returns. When the process ends, so does the actor, and Serve starts another one.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import httpx
import ray

from nld_serve.guard import GRACE, clear_leftovers
from vllm_nld.serving.modes import MODES
from vllm_nld.tools.probe import refusal
from vllm_nld.tools.server import free_port

logger = logging.getLogger("ray.serve")

STOP_TIMEOUT = GRACE + 10  # seconds for the server to shut down; Serve has already let its requests finish
ACCEPTED = "accepted"
TAKEN = re.compile("|".join(f'mode="{mode.name}"' for mode in MODES.values() if mode.takes_blocks))
COUNTS = (  # name, metric, whether only modes that verify their drafts count
    ("blocks", "nld:blocks_committed_total", False),
    ("drafted", "nld:draft_tokens_total", False),
    ("accepted", "nld:accepted_draft_tokens_total", False),
    ("verified_blocks", "nld:blocks_committed_total", True),
    ("verified_drafts", "nld:accepted_draft_tokens_total", True),
)
HOP_BY_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding", "upgrade"}


class Head(NamedTuple):
    """The status and headers of a response; chunks of its body follow."""

    status: int
    headers: list[tuple[str, str]]


class ReplicaOptions(NamedTuple):
    """The model and the `vllm serve` flags of a deployment, and the command that serves."""

    model: str
    arguments: tuple[str, ...]
    command: tuple[str, ...] = ("vllm", "serve")


class Replica:
    """A Serve deployment's callable. Ready once its server has answered a one-token request."""

    async def __init__(self, options: ReplicaOptions) -> None:  # type: ignore[misc]  # Serve awaits it
        self.host = ray.util.get_node_ip_address()
        self.port = free_port()
        self.url = f"http://{self.host}:{self.port}"
        self.client = httpx.AsyncClient(base_url=self.url, timeout=None, limits=httpx.Limits(max_connections=None))
        self.process = await asyncio.create_subprocess_exec(
            *command(options, self.host, self.port),
            stdin=asyncio.subprocess.PIPE,  # if this actor ends in whatever way, the guard sees it here
            env=environment(),
            start_new_session=True,
        )
        self.watcher = asyncio.create_task(self._end_with_server())
        await self._wait_until_ready()

    async def _wait_until_ready(self) -> None:
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
    ) -> AsyncIterator[str | Head | bytes]:
        """Forward a request; cancelling aborts it.

        Yields ACCEPTED, which says that this replica has the request, then the response's head, then its body as it
        arrives.
        """
        yield ACCEPTED
        kept = [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP]
        try:
            async with self.client.stream(method, path, headers=kept, content=body) as answer:
                yield Head(answer.status_code, [item for item in answer.headers.items() if item[0] not in HOP_BY_HOP])
                async for piece in answer.aiter_raw():
                    yield piece
        except httpx.ConnectError:
            end("is not listening any more")  # it is shutting down

    async def check_health(self) -> None:
        """Raises httpx.HTTPError if the server is unhealthy; Serve replaces the replica after three failures."""
        (await self.client.get("/health", timeout=10)).raise_for_status()

    async def target(self) -> str:
        """host:port at which Prometheus scrapes this replica."""
        return f"{self.host}:{self.port}"

    async def counts(self) -> tuple[str, Counter[str]]:
        """This replica's address and its server's counts of drafts."""
        answer = await self.client.get("/metrics", timeout=5)
        return await self.target(), draft_counts(answer.raise_for_status().text)

    async def __del__(self) -> None:
        """Stop the server. Serve calls this after the last request; if the actor is killed, the guard does it."""
        self.watcher.cancel()
        await self.client.aclose()
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), STOP_TIMEOUT)


def draft_counts(metrics: str) -> Counter[str]:
    """The counts of drafted blocks in a server's metrics; `verified_*` leave out blocks that are taken as drafted."""
    counts: Counter[str] = Counter()
    for name, metric, verified in COUNTS:
        for line in metrics.splitlines():
            if line.startswith(metric + "{") and not (verified and TAKEN.search(line)):
                counts[name] += int(float(line.rpartition(" ")[2]))
    return counts


def end(reason: str) -> NoReturn:
    """End this actor at once, because a replica without a server would take requests until three health checks fail."""
    logger.error("vllm serve %s (its own messages are in this worker's log): ending this replica", reason)
    clear_leftovers()  # if the guard was killed
    os._exit(1)


def command(options: ReplicaOptions, host: str, port: int) -> list[str]:
    """The server's command, below a guard that ends all its processes with it and with this actor."""
    ours = Path(sys.executable).parent  # the environment's own vllm, also if it is not on the PATH
    words = [str(ours / word) if word == "vllm" and (ours / word).exists() else word for word in options.command]
    return [
        *(sys.executable, "-m", "nld_serve.guard", *words, options.model),
        *("--host", host, "--port", str(port), *options.arguments),
    ]


def environment() -> dict[str, str]:
    """The actor's environment plus the cluster's address, for an engine that runs its workers on Ray."""
    return {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
