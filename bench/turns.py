"""Only the contender that is being timed runs; the processes of all others are stopped.

An idle vLLM server still polls and spins, which takes a core from whoever is being timed.

    with Turns() as turns:
        turns.add("AR", pid)            # the leader of a process group; stopped until its turn
        if turns.give("AR"):            # continued, everyone else stopped; False: it was running already
            ...                         # a short untimed request, as a continued process's caches are cold
        turns.give(None)                # nobody: this process works
                                        # at the end, also on Ctrl-C, all continue, so that they can be ended
"""

import contextlib
import os
import signal
from types import TracebackType
from typing import Self


class Turns:
    """Process groups of which at most one runs."""

    def __init__(self) -> None:
        self._leaders: dict[str, int] = {}
        self._running: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def add(self, name: str, leader: int) -> None:
        """Take in a process group and stop it. Raises ValueError if `leader` doesn't lead a group."""
        if os.getpgid(leader) != leader:
            raise ValueError(f"{name}: process {leader} does not lead a process group, so it cannot be stopped alone")
        self._leaders[name] = leader
        self._signal(name, signal.SIGSTOP)

    def give(self, name: str | None) -> bool:
        """Let only this one run; None: none of them. Returns whether it was stopped until now."""
        if name == self._running:
            return False
        if self._running is not None:
            self._signal(self._running, signal.SIGSTOP)
        self._running = name
        if name is not None:
            self._signal(name, signal.SIGCONT)
        return name is not None

    def drop(self, name: str) -> None:
        """Continue it for good, since a stopped process doesn't react to SIGTERM. Does nothing if it isn't known."""
        if name in self._leaders:
            self._signal(name, signal.SIGCONT)
            del self._leaders[name]
        if self._running == name:
            self._running = None

    def end(self) -> None:
        """Continue all of them for good."""
        for name in list(self._leaders):
            self.drop(name)

    def _signal(self, name: str, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it ended; whoever asks it next learns why
            os.killpg(self._leaders[name], number)
