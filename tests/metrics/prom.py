"""A real Prometheus for tests: the program of this environment, scraping real targets at test speed."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_nld.server import free_port

RULES = Path(__file__).parents[2] / "deploy" / "prometheus"
WHY = "no {} here: python deploy/prometheus/install.py .venv puts it there, where Debian's packages can be had"


def program(name: str) -> str:
    """Its path, or skip the test with the reason."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(WHY.format(name))
    return found


def promtool(*arguments: str, cwd: Path) -> None:
    done = subprocess.run([program("promtool"), *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def faster(text: str, factor: int) -> str:
    """Rules with every duration divided, so that what takes an hour takes seconds; expressions stay as they are."""
    seconds = {"s": 1, "m": 60, "h": 3600}

    def shorter(match: re.Match[str]) -> str:
        return f"{match[1]}{max(1, round(int(match[2]) * seconds[match[3]] / factor))}s{match[4]}"

    return re.sub(r"(\[|offset |for: )(\d+)([smh])(\]|\b)", shorter, text)


class Prometheus:
    """A running Prometheus and its HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: Any) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as response:
            return json.load(response)["data"]

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """An instant query's series with their values."""
        result = self.get("query", query=promql)["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def value(self, promql: str) -> float:
        """The one value of a query."""
        series = self.query(promql)
        assert len(series) == 1, (promql, series)
        return series[0][1]

    def firing(self) -> set[str]:
        return {alert["labels"]["alertname"] for alert in self.get("alerts")["alerts"] if alert["state"] == "firing"}


def wait_for(what: str, holds: Callable[[], bool], timeout: float = 60, show: Callable[[], Any] = lambda: "") -> None:
    begin = time.monotonic()
    while not holds():
        assert time.monotonic() - begin < timeout, f"not within {timeout:.0f} s: {what} {show()}"
        time.sleep(0.5)


@contextlib.contextmanager
def prometheus(folder: Path, target: str, factor: int = 60) -> Iterator[Prometheus]:
    """Scrapes `target` every second with the shipped rules, `factor` times as fast."""
    for name in ("recording.yml", "alerts.yml"):
        (folder / name).write_text(faster((RULES / name).read_text(), factor))
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        "rule_files: [recording.yml, alerts.yml]\n"
        f"scrape_configs: [{{job_name: vllm-nld, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    port = free_port()
    command = [
        program("prometheus"),
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    server = Prometheus(f"http://127.0.0.1:{port}")

    def ready() -> bool:
        assert process.poll() is None, (folder / "prometheus.log").read_text()[-2000:]
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{server.url}/-/ready", timeout=2).status == 200
        return False

    try:
        wait_for("Prometheus is ready", ready)
        yield server
    finally:
        process.terminate()
        process.wait(20)
