"""All servers of a benchmark, started together so that runs can alternate: an idle server costs memory, not time.

with fleet(SERVERS, ["stock", "ar"], model, folder) as servers:
    servers["ar"].url
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from bench.contenders import COMMON, Setup
from vllm_nld.tools.server import Server

AT_A_TIME = 2  # servers that start in parallel; imports keep one core busy each


@contextlib.contextmanager
def fleet(
    setups: Mapping[str, Setup], names: Sequence[str], model: Path, folder: Path, flags: Sequence[str] = ()
) -> Iterator[dict[str, Server]]:
    """Start the named servers and stop them all at the end, even if one fails to start."""
    servers: dict[str, Server] = {}
    for name in names:
        log, arguments = folder / f"{name.replace(' ', '-')}.log", [*COMMON, *setups[name].flags, *flags]
        servers[name] = Server(model, arguments, log=log, environment=setups[name].environment)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(AT_A_TIME) as pool:
        for server in servers.values():
            stack.callback(server.stop)
        started = pool.map(Server.__enter__, servers.values())
        for _ in tqdm(started, desc="starting servers", total=len(servers), unit="server"):
            pass
        yield servers
