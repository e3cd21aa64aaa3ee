"""Servers that start in a moment: forked from a process that has imported vLLM, one for all test processes.

Importing vLLM takes a process seven seconds of CPU time, and a server has two or three processes. pytest's main process
starts the warm one, and the test processes ask it for servers. A forked server must be what a new process would be, so
a server with another environment, or one that compiles, starts as users start it; so do those of `vllm-nld demo`, of
the examples and of `tests/serving/test_no_flags.py`.

    warm = Warm()                                           # before test processes start
    launch(["vllm", "serve", ...], output, environment)     # in a test process; None: start it the usual way
    warm.close()
"""

import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import values

ROOT = Path(__file__).parents[1]
ADDRESS = "NLD_WARM"  # environment variable: the warm process's socket
CONTEXTS: dict[str, Any] = multiprocessing.context._concrete_contexts  # type: ignore[attr-defined]  # by start method
SIZE = 2**17  # bytes of a message, at most
COMMAND_LINE = ("vllm.entrypoints.cli.main", "vllm.entrypoints.cli.serve")
SERVER = (  # what the server's processes import later
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.gpu.model_runner",
    "vllm_nld.model.vlm",
    "vllm_nld.triton_cpu.native",
    "spec_worker.speculator",
)
# Variables that are read when vLLM, torch or Triton are imported; but for this one.
READ_EARLY = ("VLLM_", "OMP_", "TORCH", "TRITON_", "PYTHON", "HF_", "PROMETHEUS_")
READ_LATER = {"VLLM_API_KEY"}
# What an engine sets in its own process, which a test process may have been: a server starts without.
ENGINES = {f"VLLM_{name}" for name in ("DIST_IDENT", "MAX_IMAGE_PIXELS", "MEDIA_CONNECTOR", "SSM_CONV_STATE_LAYOUT")}
ENGINES |= {f"VLLM_{name}" for name in ("DISABLE_SHARED_EXPERTS_STREAM", "OBJECT_STORAGE_SHM_BUFFER_NAME")}
ENGINES |= {"VLLM_WORKER_MULTIPROC_METHOD", "TORCHINDUCTOR_CPP_DYNAMIC_THREADS", "NUMEXPR_MAX_THREADS"}


class Warm:
    """The warm process, for who starts the test processes. It imports vLLM when first asked, and ends with them."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        path = f"{self.folder.name}/socket"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(path)
            listener.listen()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm", str(listener.fileno())],
                cwd=ROOT,
                stdin=subprocess.PIPE,  # at its end the process ends
                stdout=subprocess.DEVNULL,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
        os.environ[ADDRESS] = path

    def close(self) -> None:
        """End it. Its servers go on."""
        del os.environ[ADDRESS]
        self.process.kill()
        self.process.communicate()
        self.folder.cleanup()


class Forked:
    """What `Server` uses of subprocess.Popen."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.connection, self.pid = connection, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.connection.settimeout(timeout)
            try:
                self.returncode = json.loads(self.connection.recv(SIZE))
            except (BlockingIOError, TimeoutError):
                raise subprocess.TimeoutExpired("vllm", timeout or 0) from None
            self.connection.close()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def launch(command: Sequence[str], output: Any, environment: Mapping[str, str]) -> Forked | None:
    """A server with these arguments, in a session of its own; None if a new process would import something else."""
    if "--enforce-eager" not in command:  # the compiler reads settings at its import
        return None
    clean = {name: value for name, value in environment.items() if name not in ENGINES}
    request = {"arguments": list(command[1:]), "environment": clean, "folder": os.getcwd()}
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):  # of a warm process that has died
        connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        connection.connect(os.environ[ADDRESS])
        socket.send_fds(connection, [json.dumps(request).encode()], [output.fileno()])
        if pid := json.loads(connection.recv(SIZE) or "null"):
            stack.pop_all()
            return Forked(connection, pid)
    return None


def alike(environment: Mapping[str, str], *own: Mapping[str, str]) -> bool:
    """Whether imports under this environment would read what they read under one of these."""
    names = {name for one in (environment, *own) for name in one if name.startswith(READ_EARLY)}
    return all(environment.get(name) in [one.get(name) for one in own] for name in names - READ_LATER)


def fork_servers(listener: socket.socket, *own: Mapping[str, str]) -> dict[str, Any]:
    """Fork whenever a server is wanted. Returns in the forked process, with what it was asked for."""
    waiting = selectors.DefaultSelector()
    waiting.register(sys.stdin, selectors.EVENT_READ)
    waiting.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.fileobj is sys.stdin:
                sys.exit()
            if key.fileobj is not listener:
                report(waiting, key)
                continue
            connection, _ = listener.accept()
            text, (output,), _, _ = socket.recv_fds(connection, SIZE, 1)
            request = json.loads(text)
            pid = os.fork() if alike(request["environment"], *own) else None
            if pid == 0:
                leave(waiting, output)
                return request
            connection.send(json.dumps(pid).encode())
            os.close(output)
            if pid is None:
                connection.close()
            else:
                waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))


def leave(waiting: selectors.BaseSelector, output: int) -> None:
    """In a forked process: write to this file, and let go of what belongs to the others."""
    for key in waiting.get_map().values():
        if key.data:
            os.close(key.fd)
            key.data[1].close()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream in 1, 2:
        os.dup2(output, stream)


def report(waiting: selectors.BaseSelector, ended: selectors.SelectorKey) -> None:
    """Tell who asked for a server that it has ended."""
    pid, connection = ended.data
    waiting.unregister(ended.fileobj)
    os.close(ended.fd)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError), connection:
        connection.send(json.dumps(status).encode())


def become_server(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """What a shell's `vllm serve` is, but for processes of its own, which are forked, too."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["vllm", *arguments]
    CONTEXTS["spawn"] = CONTEXTS["fork"]
    os.register_at_fork(after_in_child=part)


def part() -> None:
    """In a process that a server has forked: signals are its own, and counters too, if several servers add theirs."""
    signal.set_wakeup_fd(-1)
    values.ValueClass = values.get_value_class()


def main() -> None:
    begun = dict(os.environ)
    listener = socket.socket(fileno=int(sys.argv[1]))
    select.select([listener, sys.stdin], [], [])
    for name in COMMAND_LINE:
        importlib.import_module(name)
    from vllm.entrypoints.cli.main import main as vllm
    from vllm.plugins import load_general_plugins

    load_general_plugins()  # before the modules that it patches, as in a new process
    for name in SERVER:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or the first collection would copy all pages
    request = fork_servers(listener, begun, dict(os.environ))
    listener.close()
    become_server(**request)
    vllm()


if __name__ == "__main__":
    main()
