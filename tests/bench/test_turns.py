"""Turns: processes that are not being timed do not run, and all of them can be ended."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import psutil
import pytest

from bench.engines import engines
from bench.turns import Turns
from tests.bench.groups import cpu_seconds, is_stopped, members

PATIENCE = 60  # seconds until something that must happen counts as failed
SPIN = "while True: pass"
SPIN_TWICE = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SPIN!r}])\n{SPIN}"


def wait_for(what: str, happens: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def runs(leader: int) -> bool:
    """Whether the group uses CPU time: waits until it does, or until all its processes are stopped."""
    before = cpu_seconds(leader)
    wait_for("the group runs or is stopped", lambda: is_stopped(leader) or cpu_seconds(leader) > before)
    if not is_stopped(leader):
        return True
    before = cpu_seconds(leader)
    time.sleep(0.2)
    assert cpu_seconds(leader) == before, "a stopped process uses no CPU time"
    return False


def spins_twice(leader: int) -> bool:
    """Whether the child has its own command. Before that, its parent waits for it and could not be stopped."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return any(process.cmdline()[-1:] == [SPIN] for process in members(leader))
    return False


@pytest.fixture
def spinning() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two process groups, like servers: in each, a process and its child that never rest."""
    processes = [subprocess.Popen([sys.executable, "-c", SPIN_TWICE], start_new_session=True) for _ in range(2)]
    try:
        for process in processes:
            wait_for("the child starts", lambda pid=process.pid: spins_twice(pid))  # type: ignore[misc]
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_only_one_group_runs(spinning: list[subprocess.Popen[bytes]]) -> None:
    first, second = (process.pid for process in spinning)
    with Turns() as turns:
        turns.add("first", first)
        turns.add("second", second)
        assert (runs(first), runs(second)) == (False, False)
        assert turns.give("first")
        assert (runs(first), runs(second)) == (True, False)
        assert not turns.give("first"), "it was running"
        assert turns.give("second")
        assert (runs(first), runs(second)) == (False, True)
        assert not turns.give(None)
        assert (runs(first), runs(second)) == (False, False)
    assert (runs(first), runs(second)) == (True, True)


def test_interrupted_turns_leave_processes_that_can_be_ended(spinning: list[subprocess.Popen[bytes]]) -> None:
    with pytest.raises(KeyboardInterrupt), Turns() as turns:
        for process in spinning:
            turns.add(str(process.pid), process.pid)
        raise KeyboardInterrupt
    for process in spinning:
        process.terminate()
        assert process.wait(PATIENCE) == -signal.SIGTERM


def test_ended_process_does_not_disturb_others(spinning: list[subprocess.Popen[bytes]]) -> None:
    first, second = spinning
    with Turns() as turns:
        turns.add("first", first.pid)
        turns.add("second", second.pid)
        turns.give("first")
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        wait_for("the group ends", lambda: not members(first.pid))
        turns.give("second")
        assert runs(second.pid)


def test_part_of_a_group_is_refused() -> None:
    child = subprocess.Popen([sys.executable, "-c", SPIN])  # in the group of the tests
    try:
        with Turns() as turns, pytest.raises(ValueError, match="does not lead a process group"):
            turns.add("child", child.pid)
        assert psutil.Process(child.pid).status() != psutil.STATUS_STOPPED
    finally:
        child.kill()
        child.wait()


def serve(pipe: Connection) -> None:
    """An engine that answers with its process, and with all questions so far."""
    questions: list[tuple[str, ...]] = []
    pipe.send("ready")
    while True:
        questions.append(pipe.recv())
        pipe.send((os.getpid(), list(questions)))


def test_engines_take_turns_and_warm_up_when_a_turn_begins() -> None:
    with engines() as start:
        first, second = start("first", serve), start("second", serve)
        one, _ = first.ask("a")
        two, asked = second.ask("b", warm_up=("warm",))
        assert asked == [("warm",), ("b",)]
        assert second.ask("c", warm_up=("warm",))[1] == [("warm",), ("b",), ("c",)], "it was running"
        wait_for("the first engine is stopped", lambda: is_stopped(one))
        second.pause()
        wait_for("the second engine is stopped", lambda: is_stopped(two))
        first.close()
        assert second.ask("d", warm_up=("warm",))[1][-2:] == [("warm",), ("d",)]
    assert not psutil.pid_exists(one) and not psutil.pid_exists(two)


def die(pipe: Connection) -> None:
    raise SystemExit(1)


def test_engine_that_dies_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="engine of mortal died"), engines() as start:
        start("mortal", die)
