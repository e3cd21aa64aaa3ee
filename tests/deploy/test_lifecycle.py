"""A server under an orchestrator: the start-up probe, and SIGTERM under load."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.test_server import UNI
from vllm_nld.nano import checkpoint_path
from vllm_nld.tools.server import Server, free_port

pytestmark = pytest.mark.server

KEY = "a-key-of-the-tests"
GRACE = 120  # --shutdown-timeout, seconds for running requests to finish
ARGUMENTS = ["--served-model-name", "nano", "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8"]
CLIENTS = 16
LENGTH = 900  # tokens per request, at most four per round, so each takes seconds


class Outcome(NamedTuple):
    tokens: int
    reason: str  # finish reason, or the client's error
    end: float


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    arguments = [*ARGUMENTS, *UNI, "--max-model-len", "1024", "--shutdown-timeout", str(GRACE)]
    log = tmp_path_factory.mktemp("lifecycle") / "log"
    with Server(checkpoint_path(), arguments, log=log, environment={"VLLM_API_KEY": KEY}) as server:
        yield server


def probe(url: str, key: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vllm_nld.tools.cli", "probe", url]
    return subprocess.run(command, env=os.environ | {"VLLM_API_KEY": key}, capture_output=True, text=True)


def test_probe_decodes_a_token(server: Server) -> None:
    passed = probe(server.url, KEY)
    assert (passed.returncode, passed.stdout) == (0, f"{server.url} decodes\n")


def test_probe_fails_with_a_reason(server: Server) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    for url, key, reason in (server.url, "wrong", "401"), (nobody, KEY, "refused"):
        failed = probe(url, key)
        assert failed.returncode == 1 and reason in failed.stderr and "does not decode" in failed.stderr


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/models", 401), ("/metrics", 200), ("/health", 200), ("/version", 200)]
)
def test_key_protects_only_the_api(server: Server, path: str, status: int) -> None:
    """As docs/deploy.md says."""
    assert httpx.get(server.url + path, timeout=10).status_code == status


def stream(client: openai.OpenAI, outcomes: list[Outcome]) -> None:
    tokens, reason = 0, ""
    try:
        chunks = client.completions.create(
            model="nano",
            prompt="1, 2, 3,",
            max_tokens=LENGTH,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True, "vllm_xargs": {"nld_block_length": 4}},
        )
        for chunk in chunks:
            tokens += 1
            reason = chunk.choices[0].finish_reason or ""
    except openai.OpenAIError as error:
        reason = type(error).__name__
    outcomes.append(Outcome(tokens, reason, time.monotonic()))


def start(server: Server, outcomes: list[Outcome]) -> list[threading.Thread]:
    """Start sixteen streams and wait until all are in the engine, because one still on its way may be rejected."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=GRACE * 2)
    threads = [threading.Thread(target=stream, args=(client, outcomes)) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + GRACE
    while in_engine(server) < CLIENTS:
        assert time.monotonic() < deadline, f"{in_engine(server)} of {CLIENTS} requests are in the engine"
        assert not outcomes, "the requests are too short to be in the engine all at once"
        time.sleep(0.05)
    return threads


def in_engine(server: Server) -> int:
    families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics", timeout=10).text)
    names = {"vllm:num_requests_running", "vllm:num_requests_waiting"}
    return int(sum(sample.value for family in families for sample in family.samples if sample.name in names))


def test_sigterm_under_load_finishes_all_requests(server: Server) -> None:
    """Eight running and eight queued requests finish normally; then the server exits."""
    assert server.process is not None
    outcomes: list[Outcome] = []
    threads = start(server, outcomes)
    begin = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert [outcome.reason for outcome in outcomes] == ["length"] * CLIENTS
    server.process.wait(GRACE)
    print(f"\ndrained in {time.monotonic() - begin:.1f} s, status {server.process.returncode}")
    assert time.monotonic() - begin < GRACE
    assert server.process.returncode == 0


def test_requests_end_after_the_shutdown_timeout(tmp_path: Path) -> None:
    """Each client gets the end of its stream or an error soon after the timeout. The worker is a separate process."""
    arguments = [*ARGUMENTS, "--max-model-len", "1024", "--max-num-seqs", "1", "--shutdown-timeout", "1"]
    arguments += ["--distributed-executor-backend", "mp"]
    with Server(checkpoint_path(), arguments, log=tmp_path / "log", environment={"VLLM_API_KEY": KEY}) as server:
        assert server.process is not None
        outcomes: list[Outcome] = []
        threads = start(server, outcomes)
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(GRACE)
        server.process.wait(GRACE)
        seconds = time.monotonic() - begin
    print(f"\nended in {seconds:.1f} s")
    assert seconds < GRACE / 4
    assert len(outcomes) == CLIENTS
    assert not [each for each in outcomes if each.reason == "APITimeoutError"], "no client is left waiting"
