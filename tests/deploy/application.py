"""The Serve application on a cluster of this machine: deploy it, look at it, move its canary."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from tests.ray_cluster import ray_nodes
from vllm_nld.tools.server import free_port

ROOT = Path(__file__).parents[2]


class Application(NamedTuple):
    url: str  # of the OpenAI API
    dashboard: str


def config(file: Path, port: int, stable_replicas: int, **arguments: str) -> Path:
    """Write the shipped single-machine config with another port to `file` and return it."""
    content = yaml.safe_load((ROOT / "deploy/ray/serve-local.yaml").read_text())
    content["http_options"]["port"] = port
    content["proxy_location"] = "HeadOnly"
    [application] = content["applications"]
    application["args"] |= arguments
    [stable] = [each for each in application["deployments"] if each["name"] == "stable"]
    stable["num_replicas"] = stable_replicas
    file.write_text(yaml.safe_dump(content))
    return file


@contextlib.contextmanager
def cluster(nodes: int) -> Iterator[str]:
    """The address of a test cluster's dashboard."""
    import ray

    paths = [str(ROOT), str(ROOT / "deploy/ray"), os.environ.get("PYTHONPATH", "")]
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.setenv("OMP_NUM_THREADS", "1")
        with ray_nodes(nodes, dashboard_port=port) as address:
            patch.setenv("RAY_ADDRESS", address)
            ray.init(address=address, log_to_driver=True)
            yield f"http://127.0.0.1:{port}"
            ray.shutdown()


def deploy(dashboard: str, file: Path) -> None:
    serve = Path(sys.executable).with_name("serve")
    subprocess.run([serve, "deploy", str(file), "--address", dashboard], check=True)


def update(dashboard: str, file: Path) -> None:
    """Deploy a config in place of another one, or as the first, and wait until it runs."""
    deploy(dashboard, file)
    time.sleep(5)  # it may still be said to run as it was
    wait_until(lambda: running(dashboard), "the application runs", timeout=600)


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 300) -> float:
    """Wait for the condition and return how many seconds it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < timeout, f"{what}: not within {timeout} s"
        time.sleep(0.5)
    return time.monotonic() - begin


def status(dashboard: str) -> dict[str, Any]:
    answer = httpx.get(f"{dashboard}/api/serve/applications/", timeout=30).raise_for_status()
    return answer.json()["applications"]["nld"]


def running(dashboard: str) -> bool:
    found = status(dashboard)
    assert found["status"] != "DEPLOY_FAILED", found["message"]
    return found["status"] == "RUNNING"


def canary(app: Application, *words: str) -> str:
    command = [sys.executable, "-m", "nld_serve.canary", *words, "--address", app.dashboard]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'deploy/ray'}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
