"""A good canary stays: real servers, the shipped limits, twenty minutes. Only with NLD_TEST_SCALE=20 (its minutes)."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator

import httpx
import pytest
import torch
import yaml

from tests.deploy.application import Application, cluster, config, running, wait_until
from tests.scale import SCALE
from vllm_nld.nano import heldout
from vllm_nld.tools.server import free_port

pytest.importorskip("ray", reason="Ray is an extra: pip install 'vllm-nld[ray]'")
pytestmark = [
    pytest.mark.server,
    pytest.mark.timeout(SCALE * 60 + 1200),
    pytest.mark.skipif(torch.cuda.is_available(), reason="starts two CPU servers; on GPUs each would need one"),
    pytest.mark.skipif(SCALE < 20, reason="takes as many minutes as NLD_TEST_SCALE, at least twenty"),
]
PAUSE = 0.3  # seconds between a client's requests: moderate load


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    file = config(tmp_path_factory.mktemp("serve") / "serve.yaml", free_port(), 1)
    content = yaml.safe_load(file.read_text())
    [router] = [one for one in content["applications"][0]["deployments"] if one["name"] == "router"]
    router["user_config"] = {"canary_share": 0.5}
    with cluster(nodes=1) as dashboard:
        httpx.put(f"{dashboard}/api/serve/applications/", json=content, timeout=60).raise_for_status()
        wait_until(lambda: running(dashboard), "the application runs", 900)
        yield Application(f"http://127.0.0.1:{content['http_options']['port']}", dashboard)


def ask(app: Application, number: int, clients: int, stop: threading.Event, failures: list[str]) -> None:
    """One client, with held-out questions. It names no user, so its requests are split one by one."""
    prompts = [prompt for prompt in heldout() if not prompt.thinking and not prompt.tools][number::clients]
    with httpx.Client(timeout=120) as client:
        asked = 0
        while not stop.wait(PAUSE):
            prompt = prompts[asked % len(prompts)]
            body = {"model": "nano", "messages": list(prompt.messages), "temperature": 0, "max_tokens": 96}
            try:
                client.post(f"{app.url}/v1/chat/completions", json=body).raise_for_status()
            except httpx.HTTPError as error:
                failures.append(repr(error))
            asked += 1


def test_good_canary_stays_for_twenty_minutes(app: Application) -> None:
    """Its criteria were judged all the time, and none was breached."""
    values: dict[str, list[float]] = defaultdict(list)
    stop, failures, looks = threading.Event(), list[str](), 0
    clients = [threading.Thread(target=ask, args=(app, number, 3, stop, failures)) for number in range(3)]
    for client in clients:
        client.start()
    try:
        begin = time.monotonic()
        while time.monotonic() < begin + SCALE * 60:
            status = httpx.get(f"{app.url}/canary", timeout=60).raise_for_status().json()
            assert (status["phase"], status["reason"]) == ("fixed", ""), status
            for criterion, finding in status["criteria"].items():
                values[criterion].append(finding["value"])
            looks += 1
            time.sleep(1)
    finally:
        stop.set()
        for client in clients:
            client.join()
        for criterion, each in values.items():
            print(f"\n{criterion}: {min(each):.3g} to {max(each):.3g}, judged in {len(each)} of {looks} looks")
    assert not failures
    assert values.keys() == {"acceptance_length", "error_rate", "latency_ratio"}
    assert min(map(len, values.values())) > 0.9 * looks, "too little traffic to judge"
