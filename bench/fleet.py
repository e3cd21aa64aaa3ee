"""All servers of a benchmark, started first so that runs can alternate; a server runs only in its turn.

That holds for its start as well, when `auto` measures what it costs.

with fleet(SERVERS, ["stock", "ar"], model, folder) as servers:
    servers.turn("ar").url                      # warmed up, and all others are stopped
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.contenders import COMMON, Setup
from bench.turns import Turns
from vllm_nld.tools.server import Server

WARM_UP_TOKENS = 16


class Fleet:
    """Running servers, of which at most one is not stopped."""

    def __init__(self, servers: Mapping[str, Server], turns: Turns) -> None:
        self.servers, self._turns = servers, turns

    def turn(self, name: str, body: Mapping[str, Any] | None = None) -> Server:
        """Let this server run alone. If it was stopped, it first answers a short request with this body."""
        server = self.servers[name]
        if self._turns.give(name):
            warm_up(server, body or {})
        return server

    def pause(self) -> None:
        """Stop all servers, so that this process can time something."""
        self._turns.give(None)


def warm_up(server: Server, body: Mapping[str, Any]) -> None:
    """Send a short request. Raises httpx.HTTPError if it fails."""
    import httpx

    request = {"model": "bench", "prompt": list(range(20, 40)), "max_tokens": WARM_UP_TOKENS, "temperature": 0}
    httpx.post(f"{server.url}/v1/completions", json={**request, **body}, timeout=60).raise_for_status()


@contextlib.contextmanager
def fleet(
    setups: Mapping[str, Setup], names: Sequence[str], model: Path, folder: Path, flags: Sequence[str] = ()
) -> Iterator[Fleet]:
    """Start the named servers and end them all at the end, even if one fails to start."""
    servers: dict[str, Server] = {}
    with contextlib.ExitStack() as stack:
        turns = Turns()
        for name in tqdm(names, desc="starting servers", unit="server"):
            log, arguments = folder / f"{name.replace(' ', '-')}.log", [*COMMON, *setups[name].flags, *flags]
            server = Server(model, arguments, log=log, environment=setups[name].environment)
            servers[name] = stack.enter_context(server)
            stack.callback(turns.drop, name)  # before it is told to end, which it could not hear
            assert server.process is not None
            turns.add(name, server.process.pid)
        yield Fleet(servers, turns)
