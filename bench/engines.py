"""Engines in child processes that answer one question at a time, so several can be loaded while only one works.

engine = Engine("V1", serve, model)             # serve(model, pipe): load, send "ready", answer until the pipe closes
engine.wait(); engine.ask("speed", 8)
"""

import multiprocessing
from collections.abc import Callable
from typing import Any


class Engine:
    """A child process and the pipe to it."""

    def __init__(self, name: str, target: Callable[..., None], *arguments: Any) -> None:
        self._name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(*arguments, theirs), daemon=True)
        self._process.start()
        theirs.close()  # only the child holds its end, so that recv() fails if the child dies

    def wait(self) -> Any:
        """The next answer. Raises RuntimeError if the child died."""
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"the engine of {self._name} died; its output is above") from None

    def ask(self, *question: Any) -> Any:
        self._pipe.send(question)
        return self.wait()

    def close(self) -> None:
        self._process.terminate()
        self._process.join()
