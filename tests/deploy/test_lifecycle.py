"""A server under an orchestrator: the start-up probe, its key, and SIGTERM under load.

`tests/serving/test_server.py` ends with requests that outlive the time to finish.
"""

import os
import signal
import subprocess
import sys
import time

import httpx
import pytest

from tests.conftest import GRACE, KEY
from tests.deploy.streams import Outcome, start
from vllm_nld.tools.server import Server, free_port

pytestmark = pytest.mark.server

CLIENTS = 24
LENGTH = 600  # tokens per request, at most four per round, so each takes seconds


def probe(url: str, key: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vllm_nld.tools.cli", "probe", url]
    return subprocess.run(command, env=os.environ | {"VLLM_API_KEY": key}, capture_output=True, text=True)


def test_probe_decodes_a_token(nano_server: Server) -> None:
    passed = probe(nano_server.url, KEY)
    assert (passed.returncode, passed.stdout) == (0, f"{nano_server.url} decodes\n")


def test_probe_fails_with_a_reason(nano_server: Server) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    for url, key, reason in (nano_server.url, "wrong", "401"), (nobody, KEY, "refused"):
        failed = probe(url, key)
        assert failed.returncode == 1 and reason in failed.stderr and "does not decode" in failed.stderr


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/models", 401), ("/metrics", 200), ("/health", 200), ("/version", 200)]
)
def test_key_protects_only_the_api(nano_server: Server, path: str, status: int) -> None:
    """As docs/deploy.md says."""
    assert httpx.get(nano_server.url + path, timeout=10).status_code == status


def test_sigterm_under_load_finishes_all_requests(nano_server: Server) -> None:
    """Sixteen running and eight queued requests finish normally; then the server exits."""
    assert nano_server.process is not None
    outcomes: list[Outcome] = []
    threads = start(nano_server, CLIENTS, LENGTH, outcomes, vllm_xargs={"nld_block_length": 4})
    begin = time.monotonic()
    nano_server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert [outcome.reason for outcome in outcomes] == ["length"] * CLIENTS
    nano_server.process.wait(GRACE)
    print(f"\ndrained in {time.monotonic() - begin:.1f} s, status {nano_server.process.returncode}")
    assert time.monotonic() - begin < GRACE
    assert nano_server.process.returncode == 0
