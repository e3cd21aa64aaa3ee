"""Runs a command and ends every process below it, however the command or its owner ends.

    python -m nld_serve.guard vllm serve MODEL ...     # stdin: a pipe that its owner holds open

A killed `vllm serve` leaves its engine and worker processes behind, and on a GPU these keep the memory that the next
server needs. So a replica runs its server under this process, which

- ends all processes below it when the command ends, because it is their subreaper;
- stops the command when its owner ends, which it sees at the other end of stdin, or on SIGTERM;
- before it starts the command, ends what a guard left behind that was itself killed (`clear_leftovers`).
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

GRACE = float(os.environ.get("NLD_GUARD_GRACE", "30"))  # seconds for the command to end after SIGTERM
MARK = "NLD_GUARD"  # in the environment of every process below a guard: which guard that is
PR_SET_CHILD_SUBREAPER = 36
END_TIMEOUT = 10  # seconds for killed processes to disappear


def identity(pid: int) -> str:
    """A process's pid and start, in ticks since boot, which no change of the clock moves; "" if it doesn't run."""
    with contextlib.suppress(OSError):
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if state not in "ZX":
            return f"{pid}:{numbers[18]}"
    return ""


def guard_of(process: psutil.Process) -> str:
    """The identity of the guard that a process was started below; "" if there is none or it can't be read."""
    with contextlib.suppress(psutil.Error, OSError):
        return process.environ().get(MARK, "")
    return ""


def clear_leftovers() -> int:
    """Kill the processes on this machine whose guard is not running any more. Returns how many there were."""
    marked = [(process.pid, guard_of(process)) for process in psutil.process_iter()]
    leftovers = [pid for pid, guard in marked if guard and identity(int(guard.partition(":")[0])) != guard]
    kill(leftovers)
    return len(leftovers)


def kill(pids: list[int]) -> None:
    """Kill processes and wait until they are gone, and the memory that they held with them."""
    deadline = time.monotonic() + END_TIMEOUT
    while (alive := [pid for pid in pids if identity(pid)]) and time.monotonic() < deadline:
        for pid in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def kill_descendants() -> None:
    """Kill every process below this one, including those that are started meanwhile."""
    below = psutil.Process()
    while alive := [child.pid for child in below.children(recursive=True) if identity(child.pid)]:
        kill(alive)


def main() -> int:
    """Run the command in sys.argv; returns its exit status."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if count := clear_leftovers():
        print(f"guard: ended {count} processes that an earlier server had left behind", file=sys.stderr, flush=True)
    # If this process is killed, the kernel sends the command SIGTERM; what it then leaves, the next guard clears.
    command = ["setpriv", "--pdeathsig", "TERM", *sys.argv[1:]]
    environment = {**os.environ, MARK: identity(os.getpid())}
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment).pid

    def stop(*signal_and_frame: Any) -> None:
        os.kill(server, signal.SIGTERM)
        deadline = threading.Timer(GRACE, os.kill, (server, signal.SIGKILL))
        deadline.daemon = True
        deadline.start()

    def stop_with_owner() -> None:
        os.read(0, 1)
        stop()

    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=stop_with_owner, daemon=True).start()
    ended = status = 0
    while ended != server:  # orphans below us end as our children as well
        ended, status = os.waitpid(-1, 0)
    kill_descendants()
    return os.waitstatus_to_exitcode(status) & 0xFF  # a negative one is a signal's number


if __name__ == "__main__":
    sys.exit(main())
