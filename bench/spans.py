"""Exclusive timing: functions are wrapped with a name, and each span's time excludes the spans inside it.

    spans = Spans(synchronize)
    runner.sample = spans.wrap("sampling", runner.sample)
    spans.take()                                # {"sampling": seconds since the last take, …}

On a GPU `synchronize` waits for the device at every boundary, so each span includes its own device time only.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any


class Spans:
    """Exclusive seconds by name."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self._synchronize = synchronize
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def inside(self, name: str) -> bool:
        """Whether a span of this name is open."""
        return name in self._open

    def take(self) -> dict[str, float]:
        """Seconds since the last call, by name."""
        taken, self._seconds = dict(self._seconds), defaultdict(float)
        return taken

    def wrap(self, name: str | Callable[[], str], function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function to be timed under a name, or under what `name()` returns at each call."""

        def timed(*args: Any, **options: Any) -> Any:
            self._switch()
            self._open.append(name if isinstance(name, str) else name())
            try:
                return function(*args, **options)
            finally:
                self._switch()
                self._open.pop()

        return timed

    def _switch(self) -> None:
        """Add the time since the last boundary to the innermost open span."""
        self._synchronize()
        now = time.perf_counter()
        if self._open:
            self._seconds[self._open[-1]] += now - self._since
        self._since = now
