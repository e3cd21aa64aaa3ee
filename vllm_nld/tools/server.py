"""A `vllm serve` process as a context manager: for the demo, the benchmarks and the tests.

with Server(checkpoint, ["--enforce-eager"], log=Path("server.log")) as server:
    openai.OpenAI(base_url=server.url + "/v1", api_key="none")
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

STOP_TIMEOUT = 30  # seconds until a server that ignores SIGTERM is killed


def free_port() -> int:
    """A TCP port on the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def vllm_command() -> list[str]:
    """The `vllm` console script of this environment."""
    return [str(Path(sys.executable).with_name("vllm"))]


class ServerError(RuntimeError):
    """The server ended or did not answer in time. The message contains the end of its log."""


class Server:
    """One server on a free loopback port. Its output goes to `log`; entering waits until it is healthy."""

    def __init__(
        self,
        model: str | Path,
        arguments: Sequence[str] = (),
        *,
        log: Path,
        environment: Mapping[str, str | None] | None = None,  # added to this process's; None: taken out
        timeout: float = 300,  # seconds to the first healthy answer
        progress: Callable[[float], None] = lambda seconds: None,  # called a few times per second while waiting
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self.timeout = timeout
        self.progress = progress
        self.command = [
            *vllm_command(),
            "serve",
            str(model),
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            *arguments,
        ]
        merged = {**os.environ, **(environment or {})}
        self.environment = {name: value for name, value in merged.items() if value is not None}
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Server":
        with self.log.open("wb") as output:
            self.process = self.launch(output)
        try:
            self._wait_until_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def launch(self, output: IO[bytes]) -> "subprocess.Popen[bytes]":
        """The process, in a session of its own. (Tests have one that starts faster.)"""
        return subprocess.Popen(
            self.command, stdout=output, stderr=subprocess.STDOUT, env=self.environment, start_new_session=True
        )

    def _wait_until_healthy(self) -> None:
        assert self.process is not None
        begin = time.monotonic()
        while (waited := time.monotonic() - begin) < self.timeout:
            if self.process.poll() is not None:
                raise ServerError(f"the server ended with status {self.process.returncode}:\n{self.tail()}")
            try:
                with urllib.request.urlopen(self.url + "/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                self.progress(waited)
                time.sleep(0.2)
        raise ServerError(f"the server did not answer within {self.timeout:.0f} s:\n{self.tail()}")

    def tail(self, lines: int = 30) -> str:
        """The end of the server's log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """Stop the server, and kill its process group if it does not end. Does nothing if it was not started."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # workers that outlived their parent
        self.process.wait()
