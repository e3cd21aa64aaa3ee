"""promtool, amtool and Prometheus for tests, which are skipped with the reason if they could not be installed."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.prometheus import find

WHY = "{} is not installed: run python deploy/prometheus/install.py .venv (needs access to Debian packages)"
needs_prometheus = pytest.mark.skipif(find("prometheus") is None, reason=WHY.format("prometheus"))
needs_promtool = pytest.mark.skipif(find("promtool") is None, reason=WHY.format("promtool"))
needs_amtool = pytest.mark.skipif(find("amtool") is None, reason=WHY.format("amtool"))


def promtool(*arguments: str, cwd: Path) -> None:
    call("promtool", *arguments, cwd=cwd)


def call(name: str, *arguments: str, cwd: Path) -> str:
    """What a program prints. Fails with that if it fails."""
    program = find(name)
    assert program is not None
    done = subprocess.run([program, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def wait_for(what: str, holds: Callable[[], bool], timeout: float = 60, show: Callable[[], Any] = lambda: "") -> None:
    begin = time.monotonic()
    while not holds():
        assert time.monotonic() - begin < timeout, f"not within {timeout:.0f} s: {what} {show()}"
        time.sleep(0.5)
