"""`vllm serve` on nano in AR mode with an OpenAI client: answers are exact, and invalid requests do no harm.

The worker is a process of its own. The last test stops the server.
"""

import json
import re
import signal
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import torch

from vllm_nld.nano import Prompt, checkpoint_path, heldout
from vllm_nld.reference import ReferenceModel, generate
from vllm_nld.tools.server import Server

pytestmark = pytest.mark.server

# Run the worker in the engine's process, as on a GPU: that saves a process that takes 13 seconds to import vLLM.
UNI = ["--distributed-executor-backend", "vllm.v1.executor.uniproc_executor.UniProcExecutor"]
MAX_MODEL_LEN = 1024
AR = ["--additional-config", json.dumps({"nld": {"mode": "ar"}})]
EXACT = ["--served-model-name", "nano", "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "16", *AR]
# If the grammar allowed any whitespace, a sampled answer could consist of nothing else.
EXACT += ["--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})]
SEPARATE = ["--distributed-executor-backend", "mp", "--shutdown-timeout", "1"]
SMALL_STEPS = ["--max-model-len", str(MAX_MODEL_LEN), "--max-num-batched-tokens", "64"]  # prompts come in chunks


def connect(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(
        checkpoint_path(), [*EXACT, *SEPARATE, *SMALL_STEPS], log=tmp_path_factory.mktemp("server") / "log"
    ) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return connect(server)


@pytest.fixture(scope="module")
def model() -> ReferenceModel:
    return ReferenceModel.from_pretrained(checkpoint_path())


def plain(count: int) -> list[Prompt]:
    """Held-out prompts without thinking or tools, spread over the categories."""
    prompts = [prompt for prompt in heldout() if not prompt.thinking and not prompt.tools]
    return prompts[:: max(1, len(prompts) // count)][:count]


def ask(client: openai.OpenAI, prompt: Prompt, **options: Any) -> Any:
    """A chat completion, greedy by default, with the token ids of prompt and answer."""
    options = {"temperature": 0, "max_tokens": 96} | options
    extra = {"return_token_ids": True} | options.pop("extra_body", {})
    return client.chat.completions.create(model="nano", messages=list(prompt.messages), extra_body=extra, **options)


def assert_equal_to_reference(client: openai.OpenAI, model: ReferenceModel, prompts: list[Prompt]) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda prompt: ask(client, prompt), prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = generate(model, answer.prompt_token_ids, mode="ar", max_new_tokens=96).tokens
        assert answer.choices[0].token_ids == list(expected), prompt.messages[-1]["content"]


def test_greedy_tokens_equal_the_reference(client: openai.OpenAI, model: ReferenceModel) -> None:
    """56 chat prompts, eight at a time, prefilled in chunks of at most 64 tokens."""
    prompts = plain(56)
    assert len(prompts) >= 50
    assert_equal_to_reference(client, model, prompts)


def test_streams_contain_the_same_text(client: openai.OpenAI) -> None:
    prompt = plain(1)[0]
    whole = ask(client, prompt).choices[0].message.content
    stream = client.chat.completions.create(
        model="nano", messages=list(prompt.messages), temperature=0, max_tokens=96, stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(pieces) == whole
    assert sum(bool(piece) for piece in pieces) > 5


def test_seeds_reproduce_and_samples_differ(client: openai.OpenAI) -> None:
    prompt = plain(2)[1]

    def sample(seed: int) -> list[str]:
        answer = ask(client, prompt, temperature=1.5, seed=seed, n=3, max_tokens=32)
        return [choice.message.content for choice in answer.choices]

    first = sample(1)
    assert len(first) == 3
    assert sample(1) == first
    assert sample(2) != first
    assert len(set(first)) > 1


def test_logprobs_are_the_models(client: openai.OpenAI, model: ReferenceModel) -> None:
    answer = ask(client, plain(3)[2], logprobs=True, top_logprobs=3, max_tokens=12)
    prompt, tokens = answer.prompt_token_ids, answer.choices[0].token_ids
    hidden = model(torch.tensor([prompt + tokens[:-1]]))[0, len(prompt) - 1 :]
    expected = model.logits(hidden).log_softmax(-1).topk(3).values
    got = torch.tensor([[top.logprob for top in step.top_logprobs] for step in answer.choices[0].logprobs.content])
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


def test_stop_string_ends_the_answer(client: openai.OpenAI) -> None:
    prompt = next(prompt for prompt in plain(60) if prompt.category == "sql")
    whole = ask(client, prompt).choices[0].message.content
    stop = whole[len(whole) // 2 :][:3]
    choice = ask(client, prompt, stop=[stop]).choices[0]
    assert choice.finish_reason == "stop"
    assert choice.message.content == whole[: whole.index(stop)]


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,10}$"},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_json_schema_is_followed(client: openai.OpenAI) -> None:
    """The prompt asks for something else, at a temperature that would never follow a schema by itself."""
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    prompt = next(prompt for prompt in plain(60) if prompt.category == "count")
    for seed in range(3):
        choice = ask(client, prompt, response_format=schema, temperature=1.0, seed=seed, max_tokens=200).choices[0]
        assert choice.finish_reason == "stop"
        value = json.loads(choice.message.content)
        assert value.keys() == {"name", "age"}
        assert re.fullmatch("[A-Z][a-z]{1,10}", value["name"]) and isinstance(value["age"], int)


def prefix_hits(server: Server) -> float:
    with urllib.request.urlopen(f"{server.url}/metrics") as response:
        text = response.read().decode()
    return sum(float(value) for value in re.findall(r"^vllm:prefix_cache_hits_total\{.*\} (\S+)$", text, re.MULTILINE))


def test_prefix_cache_hit_changes_nothing(server: Server, client: openai.OpenAI, model: ReferenceModel) -> None:
    """Send a long conversation twice. The second time, its first blocks come from the cache."""
    first, second = plain(2)
    turns = [*first.messages, {"role": "assistant", "content": first.expected}] * 3
    prompt = Prompt("history", (*turns, *second.messages), second.expected)
    once = ask(client, prompt)
    before = prefix_hits(server)
    again = ask(client, prompt)
    assert prefix_hits(server) >= before + 128, "at least one block of 128 tokens"
    expected = list(generate(model, once.prompt_token_ids, mode="ar", max_new_tokens=96).tokens)
    assert once.choices[0].token_ids == again.choices[0].token_ids == expected


def test_finish_reasons(client: openai.OpenAI) -> None:
    prompt = plain(1)[0]
    cut = ask(client, prompt, max_tokens=3)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 3)
    whole = ask(client, prompt, max_tokens=400)
    assert whole.choices[0].finish_reason == "stop"
    assert whole.choices[0].token_ids[-1] == 11, "instruct models end with <|im_end|>"


def test_thinking_switch(client: openai.OpenAI) -> None:
    prompt = plain(1)[0]
    closed = ask(client, prompt, max_tokens=1).prompt_token_ids
    opened = ask(client, prompt, max_tokens=1, extra_body={"chat_template_kwargs": {"enable_thinking": True}})
    assert 13 in closed[-2:], "if it is off, the prompt ends with closed tags"
    assert 13 not in opened.prompt_token_ids[-4:] and 12 in opened.prompt_token_ids[-4:]


GOOD = {"model": "nano", "messages": [{"role": "user", "content": "Count from 1 to 12 with commas."}], "max_tokens": 4}
BAD: dict[str, tuple[dict[str, Any] | bytes, int, str]] = {
    "unknown model": ({"model": "gpt-5"}, 404, "gpt-5"),
    "prompt too long": ({"messages": [{"role": "user", "content": "word " * 2000}]}, 400, str(MAX_MODEL_LEN)),
    "max_tokens too large": ({"max_tokens": MAX_MODEL_LEN + 1}, 400, "max_tokens"),
    "max_tokens zero": ({"max_tokens": 0}, 400, "max_tokens"),
    "bad JSON": (b'{"model": "nano", ', 400, "JSON"),
    "negative temperature": ({"temperature": -1}, 400, "temperature"),
    "top_p above one": ({"top_p": 1.5}, 400, "top_p"),
    "top_k below minus one": ({"top_k": -5}, 400, "top_k"),
    "n zero": ({"n": 0}, 400, "n must"),
    "no messages": ({"messages": "hello"}, 400, "messages"),
    "broken schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
        400,
        "",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_invalid_request_is_refused_and_the_next_one_answered(server: Server, name: str) -> None:
    change, status, words = BAD[name]
    body = change if isinstance(change, bytes) else json.dumps(GOOD | change).encode()
    url, headers = f"{server.url}/v1/chat/completions", {"content-type": "application/json"}
    refused = httpx.post(url, content=body, headers=headers, timeout=60)
    assert refused.status_code == status, refused.text
    message = refused.json()["error"]["message"]
    assert words.lower() in message.lower() and message
    answered = httpx.post(url, json=GOOD, timeout=60)
    assert answered.status_code == 200
    assert answered.json()["usage"]["completion_tokens"] == 4


def test_requests_end_after_the_shutdown_timeout(server: Server) -> None:
    """Each client, sixteen running and eight queued, gets the end of its stream or an error soon after the timeout."""
    from tests.deploy.streams import PATIENCE, Outcome, start  # which imports this module

    assert server.process is not None
    outcomes: list[Outcome] = []
    threads = start(server, 24, 900, outcomes)
    begin = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(PATIENCE)
    server.process.wait(PATIENCE)
    seconds = time.monotonic() - begin
    print(f"\nended in {seconds:.1f} s")
    assert seconds < PATIENCE / 4
    assert len(outcomes) == len(threads)
    assert not [each for each in outcomes if each.reason == "APITimeoutError"], "no client is left waiting"
