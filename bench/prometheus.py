"""A real Prometheus on a free port with the shipped rules, and its HTTP API, for the dashboard and the tests.

with prometheus(folder, "127.0.0.1:8000") as server:
    server.query("nld:output_tokens_total")
"""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_nld.tools.server import free_port

RULES = Path(__file__).parents[1] / "deploy" / "prometheus"
START_TIMEOUT = 60  # seconds until it must be ready
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
RULE_FILES = tuple(re.findall(r"^  - (\w+\.yml)$", (RULES / "prometheus.yml").read_text(), re.MULTILINE))


def find(name: str) -> str | None:
    """The path of `prometheus` or `promtool`, next to this Python or on PATH; None if it is not installed."""
    local = Path(sys.executable).with_name(name)
    return str(local) if local.exists() else shutil.which(name)


def faster(rules: str, factor: int) -> str:
    """The rules with every duration divided by `factor`, at least 1 s."""

    def shorter(match: re.Match[str]) -> str:
        return f"{match[1]}{max(1, round(int(match[2]) * SECONDS[match[3]] / factor))}s{match[4]}"

    return re.sub(r"(\[|:|offset |for: |interval: )(\d+)([smhd])(\]|\b)", shorter, rules)


class Prometheus:
    """The HTTP API of a running Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def get(self, path: str, **parameters: Any) -> Any:
        """The data of an API call."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as response:
            return json.load(response)["data"]

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """An instant query's series: labels and value of each."""
        result = self.get("query", query=promql)["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def query_range(self, promql: str, start: float, end: float, step: float) -> list[Any]:
        """A range query's series, each with its labels and its [time, value] pairs."""
        return self.get("query_range", query=promql, start=start, end=end, step=step)["result"]

    def value(self, promql: str) -> float:
        """The value of a query with one series. Raises ValueError if there are none or several."""
        series = self.query(promql)
        if len(series) != 1:
            raise ValueError(f"{promql} has {len(series)} series, not one: {series}")
        return series[0][1]

    def firing(self) -> set[str]:
        """The names of the firing alerts."""
        return {alert["labels"]["alertname"] for alert in self.get("alerts")["alerts"] if alert["state"] == "firing"}

    def ready(self) -> bool:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.url}/-/ready", timeout=2).status == 200
        return False


@contextlib.contextmanager
def prometheus(folder: Path, target: str, factor: int = 60) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes `target` every second, with the shipped rules sped up by `factor`.

    target: host:port, or the URL of an HTTP service discovery list. folder: where it keeps its data.

    Raises FileNotFoundError if Prometheus is not installed, RuntimeError if it does not start.
    """
    program = find("prometheus")
    if program is None:
        raise FileNotFoundError(
            "Prometheus is not installed: run python deploy/prometheus/install.py .venv, or put prometheus on PATH"
        )
    if target.startswith("http"):
        source = f"http_sd_configs: [{{url: '{target}', refresh_interval: 1s}}]"
    else:
        source = f"static_configs: [{{targets: ['{target}'], labels: {{deployment: stable}}}}]"
    for name in RULE_FILES:
        (folder / name).write_text(faster((RULES / name).read_text(), factor))
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        f"rule_files: [{', '.join(RULE_FILES)}]\n"
        f"scrape_configs: [{{job_name: vllm-nld, {source}}}]\n"
    )
    server = Prometheus(f"http://127.0.0.1:{free_port()}")
    command = [
        program,
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={server.url.removeprefix('http://')}",
    ]
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        begin = time.monotonic()
        while not server.ready():
            if process.poll() is not None or time.monotonic() - begin > START_TIMEOUT:
                raise RuntimeError(f"Prometheus did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait(20)
