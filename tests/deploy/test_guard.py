"""Nothing outlives a guarded server: whoever is killed, and however. The servers are small scripts of two processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from nld_serve.guard import clear_leftovers, identity

# Like vLLM, with an engine in a process of its own. Here it has its own session too, and ignores that its parent ends.
ENGINE = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
SERVER = f"""
import pathlib, subprocess, sys, time
engine = subprocess.Popen([sys.executable, "-c", {ENGINE!r}], start_new_session=True, stdout=subprocess.PIPE)
engine.stdout.readline()
pathlib.Path(sys.argv[1]).write_text(str(engine.pid))
time.sleep(60)
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + SERVER


class Guarded(NamedTuple):
    guard: subprocess.Popen[bytes]
    server: int
    engine: int

    def alive(self) -> list[str]:
        """What of the server is still running."""
        return [name for name, pid in (("server", self.server), ("engine", self.engine)) if identity(pid)]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "not within 30 s"
        time.sleep(0.02)


@contextmanager
def guarded(folder: Path, script: str = SERVER) -> Iterator[Guarded]:
    """A running guard with a server and its engine below it."""
    file = folder / "engine.pid"
    process = subprocess.Popen(
        [sys.executable, "-m", "nld_serve.guard", sys.executable, "-c", script, str(file)],
        stdin=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "deploy/ray"), "NLD_GUARD_GRACE": "0.5"},
        start_new_session=True,
    )
    wait_until(lambda: file.exists() and file.read_text())
    engine = int(file.read_text())
    server = int(Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[1])
    try:
        yield Guarded(process, server, engine)
    finally:
        for pid in (process.pid, server, engine):
            if identity(pid):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def test_killed_server_leaves_no_engine(tmp_path: Path) -> None:
    with guarded(tmp_path) as found:
        assert found.alive() == ["server", "engine"]
        os.kill(found.server, signal.SIGKILL)
        found.guard.wait(30)
        assert not found.alive() and found.guard.returncode


@pytest.mark.parametrize("script", [SERVER, STUBBORN], ids=["server that stops", "server that ignores SIGTERM"])
def test_server_ends_with_its_owner(tmp_path: Path, script: str) -> None:
    """The owner's end of the pipe closes when it is killed."""
    with guarded(tmp_path, script) as found:
        assert found.guard.stdin is not None
        found.guard.stdin.close()
        found.guard.wait(30)
        assert not found.alive()


def test_sigterm_stops_everything(tmp_path: Path) -> None:
    with guarded(tmp_path) as found:
        found.guard.terminate()
        found.guard.wait(30)
        assert not found.alive()


def test_leftovers_of_a_killed_guard_are_cleared(tmp_path: Path) -> None:
    """And nothing of a server whose guard is running."""
    other = tmp_path / "other"
    other.mkdir()
    with guarded(tmp_path) as found, guarded(other) as untouched:
        found.guard.kill()
        found.guard.wait()
        wait_until(lambda: found.alive() == ["engine"])
        assert clear_leftovers() == 1
        assert not found.alive() and untouched.alive() == ["server", "engine"]
