"""The Ray Serve application on a real two-node cluster: real servers, real clients, real kills.

Starting five servers of two processes each takes minutes on a small machine, so it runs only with NLD_TEST_SCALE=2.
"""

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import psutil
import pytest
import torch

from bench.prometheus import prometheus
from tests.deploy.application import Application, canary, cluster, config, deploy, running, update, wait_until
from tests.deploy.vlm import NAME, assert_sees, ray_config
from tests.metrics.prom import needs_prometheus
from tests.ray_cluster import actors
from tests.scale import SCALE
from vllm_nld.nano import heldout
from vllm_nld.tools.server import free_port

pytest.importorskip("ray", reason="Ray is an extra: pip install 'vllm-nld[ray]'")
pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(torch.cuda.is_available(), reason="starts several CPU servers; on GPUs each would need one"),
    pytest.mark.skipif(SCALE <= 1, reason="minutes of server starts: set NLD_TEST_SCALE=2"),
]

SECONDS = 10  # of load in each state


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    with cluster(nodes=2) as address:
        yield address


@pytest.fixture(scope="module")
def port() -> int:
    """The application's. Serve can't change it while the cluster runs."""
    return free_port()


@pytest.fixture(scope="module")
def app(dashboard: str, port: int, tmp_path_factory: pytest.TempPathFactory) -> Application:
    deploy(dashboard, config(tmp_path_factory.mktemp("serve") / "serve.yaml", port, 2))
    seconds = wait_until(lambda: running(dashboard), "the application runs")
    print(f"\nThe application was up after {seconds:.0f} s.")
    return Application(f"http://127.0.0.1:{port}", dashboard)


class Answer(NamedTuple):
    begin: float
    end: float
    deployment: str  # "" if there was none
    text: str
    failure: str  # "" if there was none


class Load:
    """Clients that send one request after another until the block ends."""

    def __init__(self, app: Application, clients: int = 4) -> None:
        self.client = openai.OpenAI(base_url=f"{app.url}/v1", api_key="none", max_retries=0, timeout=300)
        self.prompts = [prompt for prompt in heldout() if not prompt.thinking and not prompt.tools]
        self.answers: list[Answer] = []
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def _ask(self, number: int) -> None:
        index = number
        while not self.stop.is_set():
            self.answers.append(self.ask(index, stream=index % 2 == 0))
            index += len(self.threads)

    def ask(self, index: int, stream: bool) -> Answer:
        prompt, begin = self.prompts[index % len(self.prompts)], time.monotonic()
        options: dict[str, Any] = {"model": "nano", "messages": list(prompt.messages), "temperature": 0}
        deployment = text = ""
        try:
            raw = self.client.chat.completions.with_raw_response.create(**options, max_tokens=48, stream=stream)
            deployment, answer = raw.headers["x-nld-deployment"], raw.parse()
            if stream:
                text = "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
            else:
                text = answer.choices[0].message.content
        except openai.OpenAIError as error:
            return Answer(begin, time.monotonic(), deployment, text, f"{type(error).__name__}: {error}")
        return Answer(begin, time.monotonic(), deployment, text, "")

    def since(self, begin: float) -> list[Answer]:
        """Answers to the requests that were sent after `begin`."""
        return [answer for answer in self.answers if answer.begin > begin]


def test_both_deployments_give_the_same_text(app: Application) -> None:
    """Self-speculation is lossless: only the header tells a client which deployment answered."""
    canary(app, "0.5")
    load = Load(app)
    wait_until(lambda: load.ask(0, stream=False).deployment == "canary", "the share has arrived")
    for index in range(4):
        answers = [load.ask(index, stream) for stream in (True, False, False, True)]
        assert {answer.deployment for answer in answers} == {"stable", "canary"}
        assert len({answer.text for answer in answers}) == 1 and not any(answer.failure for answer in answers)


def test_canary_moves_without_a_failed_request(app: Application) -> None:
    """10 % -> 50 % -> 0 % under load; each share is met exactly."""
    canary(app, "rollback")
    with Load(app) as load:
        for words, share in (("0.1",), 0.1), (("0.5",), 0.5), (("rollback",), 0.0):
            assert canary(app, *words) == f"canary share: {share:g}"
            time.sleep(2)  # the new share is on its way
            begin = time.monotonic()
            wait_until(lambda begin=begin: len(load.since(begin)) >= 40, "answers")  # type: ignore[misc]
            time.sleep(SECONDS)
            answers = load.since(begin)
            counted = Counter(answer.deployment for answer in answers)
            print(f"\nshare {share}: {dict(counted)}")
            assert abs(counted["canary"] - share * len(answers)) <= 1 + len(load.threads)
    assert not [answer for answer in load.answers if answer.failure]
    assert canary(app) == "canary share: 0"


def targets(app: Application) -> dict[str, list[str]]:
    """The metrics addresses of the replicas, by deployment."""
    groups = httpx.get(f"{app.url}/metrics/targets", timeout=30).raise_for_status().json()
    return {group["labels"]["deployment"]: group["targets"] for group in groups if "deployment" in group["labels"]}


def requests_ended(target: str, reason: str = "") -> float:
    text = httpx.get(f"http://{target}/metrics", timeout=30).raise_for_status().text
    lines = [line for line in text.splitlines() if line.startswith("nld:requests_total{") and reason in line]
    return sum(float(line.split()[-1]) for line in lines)


def test_metrics_of_every_replica_are_listed(app: Application) -> None:
    found = targets(app)
    assert {name: len(each) for name, each in found.items()} == {"stable": 2, "canary": 1}
    for name, each in found.items():
        for target in each:
            assert requests_ended(target) > 0
            text = httpx.get(f"http://{target}/metrics", timeout=30).text
            assert ("vllm:spec_decode_num_drafts_total" in text) == (name == "canary")
            assert "nld:build_info{" in text


@needs_prometheus
def test_prometheus_finds_and_scrapes_every_replica(app: Application, tmp_path: Path) -> None:
    """From the router's list alone, and each replica's series carry its deployment."""

    def scraped(query: str) -> Counter[str]:
        return Counter(labels["deployment"] for labels, _ in server.query(query) if "deployment" in labels)

    with prometheus(tmp_path, f"{app.url}/metrics/targets") as server:
        for query in ("up == 1", "nld:build_info"):
            wait_until(
                lambda query=query: scraped(query) == {"stable": 2, "canary": 1},  # type: ignore[misc]
                query,
                timeout=60,
            )


def test_vllms_error_messages_reach_the_client(app: Application) -> None:
    answer = httpx.post(f"{app.url}/v1/chat/completions", json={"model": "nano", "messages": "hello"}, timeout=60)
    assert answer.status_code == 400 and "messages" in answer.json()["error"]["message"]
    assert httpx.get(f"{app.url}/health", timeout=60).status_code == 200


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "waiting"])
def test_client_disconnect_aborts_its_request(app: Application, stream: bool) -> None:
    """The engine aborts requests that nobody waits for."""

    def aborted() -> float:
        return sum(requests_ended(target, 'reason="abort"') for target in targets(app)["stable"])

    canary(app, "rollback")
    before = aborted()
    body = {"model": "nano", "prompt": "1, 2, 3", "max_tokens": 490, "stream": stream, "ignore_eos": True}
    body["n"] = 8  # a single choice could finish before the client disconnects
    with contextlib.suppress(httpx.ReadTimeout):
        timeout = httpx.Timeout(60, read=60 if stream else 0.5)
        with httpx.stream("POST", f"{app.url}/v1/completions", json=body, timeout=timeout) as answer:
            next(answer.iter_lines())
    wait_until(lambda: aborted() > before, "the request is aborted", timeout=20)


def test_killed_replica_comes_back(app: Application) -> None:
    """SIGKILL a replica's actor under load: its server ends too, only its own requests fail, and Serve replaces it."""
    canary(app, "0.5")
    with Load(app) as load:
        begin = time.monotonic()
        wait_until(lambda: len(load.since(begin)) >= 20, "answers")
        [replica, *_] = actors("ServeReplica:nld:canary")
        orphans = replica.children(recursive=True)
        assert any("serve" in process.cmdline() for process in orphans)
        killed = time.monotonic()
        replica.kill()
        wait_until(lambda: actors("ServeReplica:nld:canary") not in ([], [replica]), "a new replica starts")
        seconds = wait_until(lambda: running(app.dashboard), "the application runs again")
        back = time.monotonic()
        wait_until(lambda: any(a.deployment == "canary" and not a.failure for a in load.since(back)), "canary answers")
    failed = [answer for answer in load.answers if answer.failure]
    lost = [answer for answer in failed if answer.begin < killed]
    print(f"\nback after {seconds:.0f} s; {len(load.answers)} requests, {len(lost)} lost in the replica: {failed[:3]}")
    assert len(lost) <= len(load.threads), "at most the replica's running requests"
    assert failed == lost, "no request sent later"
    _, alive = psutil.wait_procs(orphans, timeout=30)
    assert not alive, "the server and its engine end with their actor"


def test_killed_ray_worker_restarts_the_replica(app: Application, port: int, tmp_path: Path) -> None:
    """A replica whose two ranks run on Ray: if one is killed, the server ends and Serve starts another."""
    flags = """--tensor-parallel-size 2 --distributed-executor-backend ray --additional-config '{"nld": {}}'"""
    update(app.dashboard, config(tmp_path / "serve.yaml", port, 1, stable=flags))
    with Load(app) as load:
        begin = time.monotonic()
        wait_until(lambda: len(load.since(begin)) >= 20, "answers")
        before = actors("RayCpuWorker")
        assert len(before) == 2
        killed = time.monotonic()
        before[1].kill()
        seconds = wait_until(
            lambda: any(answer.begin > killed + 1 and not answer.failure for answer in list(load.answers)),
            "an answer",
            600,
        )
    failed = [answer for answer in load.answers if answer.failure]
    print(f"\nanswers again after {seconds:.0f} s; failed: {json.dumps([answer.failure for answer in failed[:5]])}")
    assert failed and all("send it again" in answer.failure or "EngineCore" in answer.failure for answer in failed)
    with contextlib.suppress(psutil.NoSuchProcess):
        assert before[0].status() == psutil.STATUS_ZOMBIE, "the other rank's process ended too"


def answers_about_pictures(app: Application, deployment: str) -> list[str]:
    """The answers of one deployment, once the routers have learned that all requests are for it."""
    by: list[str] = []
    hooks: Any = {"response": [lambda response: by.append(response.headers["x-nld-deployment"])]}
    with httpx.Client(event_hooks=hooks, timeout=300) as http:
        client = openai.OpenAI(base_url=f"{app.url}/v1", api_key="none", max_retries=0, http_client=http)
        wait_until(lambda: bool(client.models.list().data) and by[-8:] == [deployment] * 8, f"{deployment} answers")
        by.clear()
        answers = assert_sees(client)
    assert set(by) == {deployment}
    return answers


def test_vision_language_model(dashboard: str, port: int, tmp_path: Path) -> None:
    """serve-vlm.yaml: both deployments answer questions about pictures through the router, and with the same text."""
    from nld_serve.replica import draft_counts

    update(dashboard, ray_config(tmp_path / "serve.yaml", port))
    app = Application(f"http://127.0.0.1:{port}", dashboard)
    canary(app, "rollback")
    stable = answers_about_pictures(app, "stable")
    canary(app, "1")
    assert answers_about_pictures(app, "canary") == stable
    [drafting] = targets(app)["canary"]
    drafts = draft_counts(httpx.get(f"http://{drafting}/metrics", timeout=30).text)
    print(f"\n{NAME} answers {stable}; the canary: {dict(drafts)}")
    assert drafts["accepted"] > 0, "the text model's adapter drafts for it"
