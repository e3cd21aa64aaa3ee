"""All modes in one server, over HTTP: parameters, aliases, streams, refusals."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from transformers import AutoTokenizer

from tests.bad_requests import bad_parameters
from tests.fuzz.__main__ import fuzz, served
from tests.scale import scaled
from tests.serving.test_server import connect, plain
from vllm_nld.adapter import answers
from vllm_nld.adapter.conversations import Row, render
from vllm_nld.model.configs import register_configs
from vllm_nld.nano import Prompt, checkpoint_path, heldout
from vllm_nld.reference import ReferenceModel, generate
from vllm_nld.tools.server import Server

pytestmark = pytest.mark.server

MASK = json.loads((checkpoint_path() / "config.json").read_text())["mask_token_id"]
THINK_END = 13
CASES = scaled(200)
MAX_TOKENS = 80
HTTP = httpx.Client(timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """All modes, endpoints and parsers, which the fuzzer needs."""
    with served(tmp_path_factory.mktemp("modes") / "log") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return connect(server)


@pytest.fixture(scope="module")
def model() -> ReferenceModel:
    return ReferenceModel.from_pretrained(checkpoint_path())


def ask(client: openai.OpenAI, prompt: Prompt, name: str = "nld", **xargs: Any) -> Any:
    extra: dict[str, Any] = {"return_token_ids": True} | ({"vllm_xargs": xargs} if xargs else {})
    return client.chat.completions.create(
        model=name, messages=list(prompt.messages), temperature=0, max_tokens=MAX_TOKENS, extra_body=extra
    )


REQUESTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("nld", {}, {"mode": "ar"}),
    ("nld:ar", {}, {"mode": "ar"}),
    ("nld", {"nld_mode": "ar"}, {"mode": "ar"}),
    ("nld:quadratic", {}, {"mode": "ar"}),
    ("nld", {"nld_mode": "quadratic", "nld_block_length": 8, "nld_groups": 1}, {"mode": "ar"}),
    ("nld:diffusion", {}, {"mode": "diffusion"}),
    ("nld", {"nld_mode": "diffusion", "nld_threshold": 0.5}, {"mode": "diffusion", "threshold": 0.5}),
    ("nld:diffusion", {"nld_block_length": 8}, {"mode": "diffusion", "block_length": 8}),
    ("nld", {"diffusion_mode": "fast_diffuser", "block_size": 16}, {"mode": "diffusion", "block_length": 16}),
]


def test_requests_decode_in_their_own_mode(client: openai.OpenAI, model: ReferenceModel) -> None:
    cases = [(prompt, *request) for prompt in plain(8) for request in REQUESTS]
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda case: ask(client, case[0], case[1], **case[2]), cases))
    known: dict[str, list[int]] = {}
    for (prompt, _, _, options), answer in zip(cases, replies, strict=True):
        key = f"{prompt.messages} {options}"
        if key not in known:
            known[key] = generate(model, answer.prompt_token_ids, max_new_tokens=MAX_TOKENS, **options).tokens
        assert answer.choices[0].token_ids == known[key], options


def test_answers_to_train_an_adapter_on(server: Server, model: ReferenceModel, tmp_path: Path) -> None:
    """They are AR's, with their end token; a command that was cut off asks for the missing ones only."""
    register_configs()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    rows = [Row(prompt.messages, category=prompt.category) for prompt in plain(6)]
    prompts, file = [render(tokenizer, row) for row in rows], tmp_path / "answers.jsonl"
    first = answers.ask_all(server.url, "nld", rows[:3], prompts[:3], file, MAX_TOKENS)
    with file.open("a") as cut:
        cut.write('{"key": "0.5')
    with pytest.raises(RuntimeError, match="did not answer"):
        answers.ask_all("http://127.0.0.1:1", "nld", rows, prompts, file, MAX_TOKENS)
    found = answers.ask_all(server.url, "nld", rows, prompts, file, MAX_TOKENS)
    assert found[:3] == first and [one.category for one in found] == [row.category for row in rows]
    for one in found:
        assert list(one.answer) == generate(model, one.prompt, mode="ar", max_new_tokens=MAX_TOKENS).tokens
    assert answers.ask_all("http://127.0.0.1:1", "nld", rows, prompts, file, MAX_TOKENS) == found, "all are known"


def test_stream_yields_blocks(client: openai.OpenAI) -> None:
    """A stream has fewer chunks than tokens, no mask token, and nothing after the end."""
    for prompt in plain(4):
        whole = ask(client, prompt, "nld:diffusion").choices[0]
        pieces, ids = [], []
        for chunk in client.chat.completions.create(
            model="nld:diffusion",
            messages=list(prompt.messages),
            temperature=0,
            max_tokens=MAX_TOKENS,
            stream=True,
            extra_body={"return_token_ids": True},
        ):
            for choice in chunk.choices:
                ids += getattr(choice, "token_ids", None) or []
                pieces.append(choice.delta.content or "")
        assert "".join(pieces) == whole.message.content
        assert ids == whole.token_ids and MASK not in ids
        assert len(pieces) < len(ids)


def post(server: Server, xargs: dict[str, Any], name: str = "nld", **options: Any) -> httpx.Response:
    body = {"model": name, "prompt": "1 2 3", "max_tokens": 4, "temperature": 0, "vllm_xargs": xargs} | options
    return HTTP.post(f"{server.url}/v1/completions", json=body)


def test_invalid_parameters_are_refused(server: Server) -> None:
    count = 0

    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(bad_parameters())
    def refused(case: tuple[dict[str, Any], str]) -> None:
        nonlocal count
        xargs, field = case
        answer = post(server, xargs)
        assert answer.status_code == 400 and field in answer.text, (xargs, answer.status_code, answer.text)
        count += 1
        if count % 100 == 0:
            assert post(server, {"nld_mode": "diffusion"}).status_code == 200

    refused()
    assert count >= CASES


COMBINATIONS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "penalty": ({"nld_mode": "diffusion"}, {"repetition_penalty": 1.2}, "repetition_penalty has no effect"),
    "alias": ({"nld_mode": "ar"}, {"name": "nld:diffusion"}, "contradicts the model name"),
    "groups": ({"nld_mode": "quadratic", "nld_groups": 4}, {}, "nld_groups must lie in [1, 3], not 4"),
    "stream": ({"nld_threshold": 2}, {"stream": True, "name": "nld:diffusion"}, "nld_threshold must lie in"),
}


@pytest.mark.parametrize(("xargs", "options", "message"), COMBINATIONS.values(), ids=COMBINATIONS)
def test_invalid_combinations_are_refused(
    xargs: dict[str, Any], options: dict[str, Any], message: str, server: Server
) -> None:
    answer = post(server, xargs, **options)
    assert answer.status_code == 400 and message in answer.text


def body_of(path: str, xargs: dict[str, Any], **options: Any) -> dict[str, Any]:
    """A request of four greedy tokens to an endpoint that takes sampling parameters."""
    body = {"model": "nld", "max_tokens": 4, "temperature": 0, "vllm_xargs": xargs} | options
    messages = [{"role": "user", "content": "Count from 1 to 5."}]
    if path == "/v1/completions":
        return body | {"prompt": "1 2 3"}
    if path == "/v1/responses":
        return {**body, "input": "Count from 1 to 5.", "max_output_tokens": body.pop("max_tokens")}
    if path == "/inference/v1/generate":
        params = {"max_tokens": 4, "temperature": 0, "extra_args": body.pop("vllm_xargs")}
        return {"model": body["model"], "token_ids": [5, 300, 301], "sampling_params": params} | {
            name: value for name, value in options.items() if name == "stream"
        }
    return body | {"messages": messages}


@pytest.mark.parametrize("stream", [False, True])
def test_integers_beyond_64_bits_are_refused(stream: bool, server: Server) -> None:
    answer = post(server, {}, top_k=10**20, temperature=1, stream=stream)
    assert answer.status_code == 400 and "top_k must fit in 64 bits" in answer.text, answer.text


BEAMS = {"use_beam_search": True, "n": 2}
ENDPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {}),
    "completion": ("/v1/completions", {}),
    "response": ("/v1/responses", {}),
    "message": ("/v1/messages", {}),
    "tokens": ("/inference/v1/generate", {}),
    "beams of a chat": ("/v1/chat/completions", BEAMS),
    "beams of a completion": ("/v1/completions", BEAMS),
}


@pytest.mark.parametrize(("path", "options"), ENDPOINTS.values(), ids=ENDPOINTS)
def test_every_endpoint_checks_fields(path: str, options: dict[str, Any], server: Server) -> None:
    """Under HTTP 400 and by name, in a stream before it begins; a good request is answered."""
    for bad, field in (
        ({"nld_mode": "fast"}, "nld_mode"),
        ({"nld_treshold": 1}, "nld_treshold"),
        ({"nld": "x"}, "nld"),
    ):
        for stream in {} if options else {"stream": False}, {"stream": True}:
            if options and stream:
                continue  # vLLM streams no beams
            answer = HTTP.post(server.url + path, json=body_of(path, bad, **options, **stream))
            assert answer.status_code == 400 and field in answer.text, (answer.status_code, answer.text)
    answer = HTTP.post(server.url + path, json=body_of(path, {"nld_mode": "ar"}, **options))
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", [path for path, options in ENDPOINTS.values() if not options])
def test_every_endpoint_reads_the_mode(path: str, server: Server) -> None:
    """From a field and from the model's name, as the server's own counters say."""
    for body in (body_of(path, {"nld_mode": "ar"}), body_of(path, {}, model="nld:ar")):
        before = requests_by_mode(server)
        assert HTTP.post(server.url + path, json=body).status_code == 200
        after = requests_by_mode(server)
        assert after - before == Counter({"ar": 1})


def requests_by_mode(server: Server) -> Counter[str]:
    """How many requests have ended, by mode."""
    found: Counter[str] = Counter()
    for line in HTTP.get(server.url + "/metrics").text.splitlines():
        if line.startswith("nld:requests_total{"):
            found[re.findall(r'mode="(\w+)"', line)[0]] += int(float(line.split()[-1]))
    return found


def chat(server: Server, name: str, **options: Any) -> Any:
    """The first choice of a greedy chat completion."""
    body = {"model": name, "messages": list(plain(1)[0].messages), "temperature": 0, "return_token_ids": True}
    answer = HTTP.post(f"{server.url}/v1/chat/completions", json=body | options)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def test_structured_output_in_every_mode(server: Server) -> None:
    """The answer is one of the choices: a denoised token that the grammar forbids is not taken."""
    for name in ("nld:auto", "nld:ar", "nld:linear", "nld:diffusion"):
        for choices in (["yes", "no"], ["SELECT 1", "DELETE 2"]):
            answer = chat(server, name, max_tokens=16, structured_outputs={"choice": choices})
            assert answer["message"]["content"] in choices, name


def test_diffusion_logprobs_are_those_of_the_commit(server: Server) -> None:
    """A token's probability is at least the threshold or the best of its pass; the first token is the AR pathway's."""
    answer = chat(server, "nld:diffusion", max_tokens=32, logprobs=True, vllm_xargs={"nld_threshold": 0.9})
    logprobs = [entry["logprob"] for entry in answer["logprobs"]["content"]]
    assert all(value <= 0 for value in logprobs)
    assert sum(value >= -0.1054 for value in logprobs) > len(logprobs) / 3, "0.9 is exp(-0.1054)"


@pytest.mark.parametrize("name", ["nld:auto", "nld:ar", "nld:linear", "nld:diffusion"])
@pytest.mark.parametrize("budget", [0, 1, 5])
def test_thinking_budget(name: str, budget: int, server: Server) -> None:
    thinking = {"chat_template_kwargs": {"enable_thinking": True}, "thinking_token_budget": budget}
    ids = chat(server, name, max_tokens=40, **thinking)["token_ids"]
    assert THINK_END in ids[: budget + 1], ids


@pytest.mark.parametrize("name", ["nld:auto", "nld:ar", "nld:linear"])
def test_tool_calls(name: str, client: openai.OpenAI) -> None:
    """nano gets most of these calls right in either mode."""
    prompts = [prompt for prompt in heldout() if prompt.tools and not prompt.thinking][:4]
    right = 0
    for prompt in prompts:
        choice = client.chat.completions.create(
            model=name, messages=list(prompt.messages), tools=list(prompt.tools), temperature=0, max_tokens=96
        ).choices[0]
        for call in choice.message.tool_calls or []:
            expected = json.loads(prompt.expected.removeprefix("<tool_call>").removesuffix("</tool_call>"))
            right += {"name": call.function.name, "arguments": json.loads(call.function.arguments)} == expected
    assert right >= 3


def test_the_fuzzer_finds_nothing(server: Server) -> None:
    """About 150 requests, the same ones every time."""
    report = asyncio.run(fuzz(server.url, seed=0, requests=150))
    assert not report.failures, report
    assert report.answered > 60 and report.refused > 5 and report.alone and report.requests >= 150, report
