"""`vllm serve` on nano in linear mode: exact answers, correct metrics, and no trace of aborted requests."""

import contextlib
import io
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import KEY
from tests.serving.test_server import GOOD, ask, connect, plain
from tests.spec_worker.acceptance import Acceptance, exact_steps
from vllm_nld.nano import checkpoint_path
from vllm_nld.reference import ReferenceModel, generate
from vllm_nld.tools.server import Server

pytestmark = pytest.mark.server

B, TOKENS = 32, 96


@pytest.fixture(scope="module")
def server(nano_server: Server) -> Server:
    return nano_server


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return connect(server)


@pytest.fixture(scope="module")
def model() -> ReferenceModel:
    return ReferenceModel.from_pretrained(checkpoint_path())


def scrape(server: Server, name: str) -> list[float]:
    """The values of a metric, in the order of /metrics."""
    text = httpx.get(f"{server.url}/metrics").text
    return [float(value) for value in re.findall(rf"^vllm:{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)]


def acceptance(server: Server) -> Acceptance:
    names = ("drafts", "draft_tokens", "accepted_tokens", "accepted_tokens_per_pos")
    drafts, tokens, accepted, positions = (scrape(server, f"spec_decode_num_{name}_total") for name in names)
    return Acceptance(int(sum(drafts)), int(sum(tokens)), int(sum(accepted)), tuple(int(p) for p in positions))


def test_metrics_equal_the_reference(server: Server, client: openai.OpenAI, model: ReferenceModel) -> None:
    """Send one request after another. Compare the counters by position, and each answer's own steps."""
    for prompt in plain(4):
        before = acceptance(server)
        answer = ask(client, prompt)
        tokens = answer.choices[0].token_ids
        steps = exact_steps(model, answer.prompt_token_ids, len(tokens), B)
        exact = Acceptance.of_steps(steps, B)
        assert tokens == generate(model, answer.prompt_token_ids, mode="linear", max_new_tokens=TOKENS).tokens
        assert acceptance(server) - before == exact
        own = answer.metrics["speculative_decoding"]
        assert own["per_step_accepted"] == steps
        assert own["per_step_drafted"] == [B - 1] * len(steps)
        assert own["mean_acceptance_length"] == pytest.approx(exact.length)
        assert own["acceptance_histogram"] == [steps.count(accepted) for accepted in range(B)]


def test_concurrent_answers_equal_ar(client: openai.OpenAI, model: ReferenceModel) -> None:
    """24 prompts, 16 at a time, as full responses and as streams."""
    prompts = plain(24)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda prompt: ask(client, prompt), prompts))
        streams = list(pool.map(lambda prompt: streamed(client, prompt), prompts))
    for answer, pieces in zip(answers, streams, strict=True):
        assert (
            answer.choices[0].token_ids
            == generate(model, answer.prompt_token_ids, mode="ar", max_new_tokens=TOKENS).tokens
        )
        assert "".join(pieces) == answer.choices[0].message.content
        assert answer.usage.completion_tokens == len(answer.choices[0].token_ids)


def streamed(client: openai.OpenAI, prompt: Any) -> list[str]:
    stream = client.chat.completions.create(
        model="nano", messages=list(prompt.messages), temperature=0, max_tokens=TOKENS, stream=True
    )
    return [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]


def test_requests_of_disconnected_clients_are_aborted(
    server: Server, client: openai.OpenAI, model: ReferenceModel
) -> None:
    """Eight clients disconnect in the middle of long answers. Nothing keeps running, and the next answer is exact."""
    finished = sum(scrape(server, "generation_tokens_total"))
    for prompt in plain(8):
        with client.chat.completions.create(
            model="nano",
            messages=list(prompt.messages),
            temperature=1.0,
            max_tokens=700,
            stream=True,
            extra_body={"ignore_eos": True},
        ) as stream:
            next(iter(stream))
    deadline = time.monotonic() + 30
    while sum(scrape(server, "num_requests_running")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert sum(scrape(server, "num_requests_running")) == 0 == sum(scrape(server, "kv_cache_usage_perc"))
    assert sum(scrape(server, "generation_tokens_total")) - finished < 8 * 700 / 2, "they must be aborted, not finished"
    answer = ask(client, plain(1)[0])
    exact = generate(model, answer.prompt_token_ids, mode="ar", max_new_tokens=TOKENS).tokens
    assert answer.choices[0].token_ids == exact


def post(server: Server, body: dict[str, Any]) -> httpx.Response:
    headers = {"authorization": f"Bearer {KEY}"}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=60)


@pytest.mark.parametrize(
    "option", [{"min_p": 0.1, "temperature": 1, "seed": 3}, {"logit_bias": {"42": 100.0}}], ids=["min_p", "logit_bias"]
)
def test_parameters_that_stock_vllm_refuses_beside_drafts(server: Server, option: dict[str, Any]) -> None:
    """They are served by modes that verify. Diffusion refuses them, because they would not reach its drafts."""
    for mode, status in {"linear": 200, "ar": 200, "diffusion": 400}.items():
        answer = post(server, GOOD | option | {"vllm_xargs": {"nld_mode": mode}})
        assert answer.status_code == status, answer.text
        assert status == 200 or f"{next(iter(option))} has no effect in mode 'diffusion'" in answer.text


OVERSIZED: dict[str, tuple[dict[str, Any], str]] = {
    "allowed tokens": ({"allowed_token_ids": [*range(200, 900), *range(200, 900)]}, "allowed_token_ids: 1400"),
    "stop tokens": ({"stop_token_ids": list(range(200, 328)), "min_tokens": 2}, "stop_token_ids with min_tokens: 129"),
    "bad words": ({"bad_words": ["zyx " * 400]}, "bad_words in tokens"),
}


@pytest.mark.parametrize(("option", "message"), OVERSIZED.values(), ids=OVERSIZED)
def test_oversized_lists_are_refused(server: Server, option: dict[str, Any], message: str) -> None:
    """Otherwise the worker would raise an error, which ends the server."""
    refused = post(server, GOOD | option)
    assert refused.status_code == 400, refused.text
    assert message in refused.json()["error"]["message"]
    assert post(server, GOOD).status_code == 200


def test_bench_serve_reports_speculative_decoding(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """`vllm bench serve` in this process, which has imported vLLM."""
    from vllm.benchmarks import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    before, parser = acceptance(server), FlexibleArgumentParser()
    serve.add_cli_args(parser)
    words = ["--base-url", server.url, "--model", "nano"]
    words += ["--tokenizer", str(checkpoint_path()), "--dataset-name", "random", "--random-input-len", "40"]
    words += ["--random-output-len", "24", "--num-prompts", "8", "--temperature", "0", "--ignore-eos"]
    with contextlib.redirect_stdout(io.StringIO()) as told:
        serve.main(parser.parse_args(words))
    found = acceptance(server) - before
    block = told.getvalue()
    block = block[block.index("Speculative Decoding") :]

    def printed(label: str) -> float:
        line = re.search(rf"^{re.escape(label)}\s+(\S+)", block, re.MULTILINE)
        assert line is not None, block
        return float(line[1])

    # before it counts, bench sends one request to see whether the server answers
    assert 0 < printed("Drafts:") <= found.drafts
    assert printed("Draft tokens:") == printed("Drafts:") * (B - 1)
    assert 0 < printed("Accepted tokens:") <= found.accepted
    length = 1 + printed("Accepted tokens:") / printed("Drafts:")
    assert printed("Acceptance length:") == pytest.approx(length, abs=0.006)
    assert printed("Acceptance rate (%):") == pytest.approx((length - 1) / (B - 1) * 100, abs=0.006)
    positions = [float(rate) for rate in re.findall(r"Position \d+:\s+(\S+)", block)]
    assert len(positions) == B - 1 and sum(positions) / 100 == pytest.approx(length - 1, abs=0.01)
    assert positions == sorted(positions, reverse=True), "a draft is only accepted if all before it are"
