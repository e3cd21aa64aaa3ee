"""Kill every kind of process under load: only what was in it fails, nothing is left, and the canary's share holds.

A real cluster, router, judge and replicas. Their servers are stubs (`stub_server.py`), which start at once; with
NLD_TEST_SCALE=2 they are real, with a draft adapter that drafts nonsense for the rollback, which takes minutes.
"""

import contextlib
import itertools
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.deploy.application import Application, canary, cluster, config, running, wait_until
from tests.deploy.application import status as serving
from tests.ray_cluster import actors, command
from tests.scale import SCALE
from vllm_nld.nano import checkpoint_path
from vllm_nld.tools.server import free_port

pytest.importorskip("ray", reason="Ray is an extra: pip install 'vllm-nld[ray]'")

from nld_serve.app import LINEAR  # noqa: E402 - only if Ray is installed
from nld_serve.cohorts import point  # noqa: E402
from nld_serve.guard import identity  # noqa: E402

pytestmark = [
    pytest.mark.server,
    pytest.mark.timeout(2400 if SCALE > 1 else 600),
    pytest.mark.skipif(torch.cuda.is_available(), reason="starts several CPU servers; on GPUs each would need one"),
]
REAL = SCALE > 1
START = 900 if REAL else 300  # seconds for servers to start, all at once
SHARE = 0.5
KILLED = ("engine", "worker", "server")  # in a server of the canary each; test_guard.py kills guards
USERS = [f"user-{number}" for number in range(12)]
USER_CONFIG = {
    "canary_share": SHARE,
    "failover": {"accept_s": 1.0},
    # The kills must not roll it back: that is what the acceptance length is for here.
    "rollback": {
        "window_s": 4,
        "min_blocks": 50,
        "min_acceptance_length": 1.5,
        "max_error_rate": None,
        "max_latency_ratio": None,
    },
}


class Answer(NamedTuple):
    begin: float
    user: str
    deployment: str  # "" if there was none
    failover: str
    failure: str  # "" if there was none


class Load:
    """Clients that send one streaming request after another, each as the next user, until the block ends."""

    def __init__(self, url: str, clients: int = 6) -> None:
        self.url = f"{url}/v1/completions"
        self.answers: list[Answer] = []
        self.stop = threading.Event()
        self.users = itertools.cycle(USERS)
        self.threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def _ask(self) -> None:
        with httpx.Client(timeout=120) as client:
            while not self.stop.is_set():
                self.answers.append(self.ask(client, next(self.users)))

    def ask(self, client: httpx.Client, user: str) -> Answer:
        body = {"model": "nano", "prompt": "1, 2, 3,", "max_tokens": 40, "stream": True, "user": user}
        begin, headers, failure, lines = time.monotonic(), httpx.Headers(), "", [""]
        try:
            with client.stream("POST", self.url, json=body) as answer:
                headers, lines = answer.headers, [line for line in answer.iter_lines() if line]
                if answer.status_code != 200:
                    failure = f"{answer.status_code} {lines}"
        except httpx.HTTPError as error:
            failure = repr(error)
        if not failure and (any('"error"' in line for line in lines) or lines[-1] != "data: [DONE]"):
            failure = lines[-1]
        return Answer(begin, user, headers.get("x-nld-deployment", ""), headers.get("x-nld-failover", ""), failure)

    def wait(self, count: int = 12, deployment: str = "", timeout: float = START) -> None:
        """Wait for some more answers without a failure, of a deployment if it is named."""

        def enough() -> bool:
            return sum(not one.failure and deployment in one.deployment for one in self.answers[seen:]) >= count

        seen = len(self.answers)
        wait_until(enough, f"{count} answers of {deployment or 'any deployment'}", timeout)

    def failed(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.failure]

    def check_cohorts(self) -> None:
        """Every user was on the deployment of its cohort, except in requests that failed over."""
        for answer in self.answers:
            if answer.deployment and not answer.failover:
                assert answer.deployment == ("canary" if point("user", answer.user) < SHARE else "stable"), answer


def servers() -> list[dict[str, psutil.Process]]:
    """The processes of each of the canary's servers, by role, of those that are complete."""
    found = []
    for actor in actors("ServeReplica:nld:canary"):
        processes = {role(" ".join(command(process))): process for process in actor.children(recursive=True)}
        if processes.keys() >= {"guard", "server", "engine", "worker"}:
            found.append(processes)
    return found


def role(words: str) -> str:
    if "nld_serve.guard" in words:
        return "guard"
    for name in "engine", "worker":
        if words.endswith(f" {name}") or f"vllm::{name}" in words.lower():
            return name
    return "server" if "--port" in words else ""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of nano whose draft adapter a test may spoil; the stub's metrics say what they drafted."""
    folder = tmp_path_factory.mktemp("chaos")
    (folder / "drafts").write_text("5")
    return Path(shutil.copytree(checkpoint_path(), folder / "model")) if REAL else folder


@pytest.fixture(scope="module")
def app(model: Path) -> Iterator[Application]:
    arguments = {"model": str(model)}
    if REAL:
        # A worker that is a process; the mode is the default's.
        arguments["canary"] = f"--distributed-executor-backend mp {LINEAR}"
    else:
        arguments["command"] = f"{sys.executable} {Path(__file__).with_name('stub_server.py')}"
        arguments["arguments"] = f"--drafts {model / 'drafts'}"
    file = config(model.parent / "serve.yaml", free_port(), 1, **arguments)
    content = yaml.safe_load(file.read_text())
    for deployment in content["applications"][0]["deployments"]:
        if deployment["name"] == "router":
            deployment |= {"num_replicas": 2, "user_config": USER_CONFIG}
        else:
            replicas = len(KILLED) if deployment["name"] == "canary" else 1
            deployment |= {"num_replicas": replicas, "health_check_period_s": 1}
    with cluster(nodes=1) as dashboard:
        httpx.put(f"{dashboard}/api/serve/applications/", json=content, timeout=60).raise_for_status()
        wait_until(lambda: running(dashboard), "the application runs", START)
        application = Application(f"http://127.0.0.1:{content['http_options']['port']}", dashboard)
        wait_until(lambda: reported(application) == "fixed", "the canary begins")
        wait_until(lambda: all_know(application), "every router has got to know it")
        yield application
    ours = [process for process in psutil.process_iter() if str(model) in " ".join(command(process))]
    wait_until(lambda: not any(identity(process.pid) for process in ours), "every server ends with the cluster", 60)


def status(app: Application) -> dict[str, Any]:
    return httpx.get(f"{app.url}/canary", timeout=30).raise_for_status().json()


def up(app: Application, deployment: str) -> set[str]:
    """The replicas that run; an actor that is still starting is none."""
    replicas = serving(app.dashboard)["deployments"][deployment]["replicas"]
    return {replica["replica_id"] for replica in replicas if replica["state"] == "RUNNING"}


def all_know(app: Application) -> bool:
    """Whether many requests of the canary's users go to it, whichever router takes them."""
    users = [user for user in USERS if point("user", user) < SHARE]
    with httpx.Client(timeout=120) as client:
        return all(Load(app.url).ask(client, user).deployment == "canary" for user in users * 3)


def reported(app: Application) -> str:
    """The canary's phase; empty while no judge answers."""
    with contextlib.suppress(httpx.HTTPError):
        return status(app)["phase"]
    return ""


def told(load: Load, what: str) -> None:
    """Print the figures of a test."""
    on = Counter(one.deployment or "none" for one in load.answers)
    moved = sum(bool(one.failover) for one in load.answers)
    print(f"\n{what}: {len(load.answers)} requests {dict(on)}, {moved} failed over, {len(load.failed())} failed")


def test_only_requests_in_a_killed_process_fail(app: Application) -> None:
    """Another process in each of the canary's servers. Requests go to stable meanwhile, and nothing of them is left."""
    with Load(app.url) as load:
        wait_until(lambda: len(servers()) == len(KILLED), "all servers are up", START)
        load.wait(deployment="canary")
        before = servers()
        for processes, name in zip(before, KILLED, strict=True):
            processes[name].kill()
        every = [process for processes in before for process in processes.values()]
        wait_until(lambda: not any(identity(process.pid) for process in every), "all their processes end", 60)
        at = time.monotonic()
        load.wait(deployment="canary")
    told(load, "kills of engine, worker and server")
    assert [one for one in load.failed() if one.begin > at or one.deployment != "canary"] == []
    assert len(load.failed()) <= len(load.threads)
    load.check_cohorts()
    assert status(app)["phase"] == "fixed", "a canary that drafts well stays"


def test_killed_router(app: Application) -> None:
    """The others take over, with the same share and cohorts."""
    with Load(app.url) as load:
        load.wait()
        assert len(up(app, "router")) == 2
        actors("ServeReplica:nld:router")[0].kill()
        at = time.monotonic()
        load.wait(24)
    told(load, "kill of a router")
    assert [one for one in load.failed() if one.begin > at] == []
    load.check_cohorts()


def plant_bad_adapter(app: Application, model: Path) -> None:
    """Make the canary draft nonsense: its stub says so; a real one starts again with a spoiled adapter."""
    before = up(app, "canary")
    (model.parent if REAL else model).joinpath("drafts").write_text("0")
    if REAL:
        file = model / "linear_spec_lora/adapter_model.safetensors"
        save_file({name: torch.randn_like(one) for name, one in load_file(file).items()}, file)
        wait_until(lambda: len(servers()) == len(KILLED), "all servers are up", START)
        for processes in servers():
            processes["server"].kill()
        wait_until(lambda: bool(up(app, "canary") - before), "the first one is back", START)


def test_bad_adapter_is_rolled_back_within_two_minutes(app: Application, model: Path) -> None:
    """And stays out when the judge and all routers are killed, until another run begins."""
    with Load(app.url) as load:
        load.wait(deployment="canary")
        plant_bad_adapter(app, model)
        seconds = wait_until(lambda: status(app)["phase"] == "rolled_back", "the canary is rolled back", 120)
        assert status(app)["reason"].startswith("acceptance_length 1")
        wait_until(lambda: len(up(app, "router")) == 2, "the router that was killed is replaced", 60)
        wait_until(lambda: {one.deployment for one in load.answers[-24:]} == {"stable"}, "both routers obey", 60)
        at = time.monotonic()
        for name in "judge", "router":
            for actor in actors(f"ServeReplica:nld:{name}"):
                actor.kill()
        load.wait(24)
        wait_until(lambda: reported(app) == "rolled_back", "another judge has read it", 60)
        assert "nld_router_canary_rolled_back 1.0" in httpx.get(f"{app.url}/metrics", timeout=30).text
    assert {one.deployment for one in load.answers if one.begin > at and not one.failure} == {"stable"}
    if REAL:  # test_router.py does it without a cluster
        assert canary(app, "0.25") == "canary share: 0.25"
        wait_until(lambda: reported(app) == "fixed", "another run begins", 30)
    told(load, f"rolled back after {seconds:.0f} s")
