"""Many long streams at once, for tests that stop a server under load."""

import threading
import time
from typing import Any, NamedTuple

import httpx
import openai
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.test_server import connect
from vllm_nld.tools.server import Server

PATIENCE = 120  # seconds until all requests are in the engine, or have ended
ATTEMPTS = 3  # to have them there all at once: on a busy machine the first may end before the last arrives


class Outcome(NamedTuple):
    tokens: int
    reason: str  # finish reason, or the client's error
    end: float


def stream(client: openai.OpenAI, length: int, fields: dict[str, Any], outcomes: list[Outcome]) -> None:
    tokens, reason = 0, ""
    try:
        chunks = client.completions.create(
            model="nano",
            prompt="1, 2, 3,",
            max_tokens=length,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True} | fields,
        )
        for chunk in chunks:
            tokens += 1
            reason = chunk.choices[0].finish_reason or ""
    except openai.OpenAIError as error:
        reason = type(error).__name__
    outcomes.append(Outcome(tokens, reason, time.monotonic()))


def start(server: Server, count: int, length: int, outcomes: list[Outcome], **fields: Any) -> list[threading.Thread]:
    """Start streams and wait until all are in the engine, because one still on its way may be rejected."""
    client = connect(server).with_options(timeout=PATIENCE * 2)
    for _ in range(ATTEMPTS):
        threads = [threading.Thread(target=stream, args=(client, length, fields, outcomes)) for _ in range(count)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + PATIENCE
        while not outcomes:
            if in_engine(server) >= count:
                return threads
            assert time.monotonic() < deadline, f"{in_engine(server)} of {count} requests are in the engine"
            time.sleep(0.05)
        for thread in threads:
            thread.join(PATIENCE)
        outcomes.clear()
    raise AssertionError("the requests are too short to be in the engine all at once")


def in_engine(server: Server) -> int:
    families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics", timeout=10).text)
    names = {"vllm:num_requests_running", "vllm:num_requests_waiting"}
    return int(sum(sample.value for family in families for sample in family.samples if sample.name in names))
