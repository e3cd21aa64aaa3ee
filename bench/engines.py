"""Engines in child processes that answer one question at a time, so several can be loaded while only one works.

with engines() as start:
    fast = start("V1", serve, model)            # serve(model, pipe): load, send "ready", answer until the pipe closes
    fast.ask("speed", 8)                        # all other engines are stopped meanwhile
"""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from typing import Any

from bench.turns import Turns

GRACE = 20.0  # seconds that an engine has to end by itself


class Engine:
    """A child process, the pipe to it, and its turns with other engines."""

    def __init__(self, turns: Turns, name: str, target: Callable[..., None], *arguments: Any) -> None:
        self._turns, self._name = turns, name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=lead, args=(target, *arguments, theirs), daemon=True)
        self._process.start()
        theirs.close()  # only the child holds its end, so that recv() fails if the child dies

    def load(self) -> None:
        """Wait until it is ready. It then stops until it is asked. Raises RuntimeError if the child died."""
        self._answer()
        assert self._process.pid is not None
        self._turns.add(self._name, self._process.pid)

    def ask(self, *question: Any, warm_up: tuple[Any, ...] | None = None) -> Any:
        """The answer. warm_up: a short question to ask first if the engine was stopped; its answer is dropped."""
        if self._turns.give(self._name) and warm_up is not None:
            self._pipe.send(warm_up)
            self._answer()
        self._pipe.send(question)
        return self._answer()

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"the engine of {self._name} died; its output is above") from None

    def pause(self) -> None:
        """Stop it, so that this process can time something."""
        self._turns.give(None)

    def close(self) -> None:
        """End it, even if one of its threads keeps it from ending."""
        self._turns.drop(self._name)
        self._process.terminate()
        self._process.join(GRACE)
        self._process.kill()
        self._process.join()


@contextlib.contextmanager
def engines() -> Iterator[Callable[..., Engine]]:
    """A function that starts engines one after another; all are closed at the end."""
    with contextlib.ExitStack() as stack:
        turns = stack.enter_context(Turns())

        def start(name: str, target: Callable[..., None], *arguments: Any) -> Engine:
            turns.give(None)
            engine = Engine(turns, name, target, *arguments)
            stack.callback(engine.close)
            engine.load()
            return engine

        yield start


def lead(target: Callable[..., None], *arguments: Any) -> None:
    """The child: lead a process group, so that it can be stopped with its own children, then do the work."""
    os.setpgrp()
    target(*arguments)
