"""Greedy output of linear self-speculation equals the reference's AR output, token for token, in fp32.

Every engine below is a way in which speculation has gone wrong before: small budgets, preemption with drafts in flight,
asynchronous scheduling, shared prefixes, a block without room at the context's end.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines import engine, greedy, random_prompts
from tests.tiny import CONFIG
from vllm_nld.reference import ReferenceModel, generate

VOCAB, CONTEXT = CONFIG["vocab_size"], CONFIG["max_position_embeddings"]
TOKENS = 24


def self_speculation(path: Path, block_length: int) -> dict[str, Any]:
    return {"method": "draft_model", "model": str(path), "num_speculative_tokens": block_length - 1}


def allow_async(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what the CPU platform's hook does: asynchronous scheduling is the default on GPUs."""
    from vllm.platforms.cpu import CpuPlatform

    inherited = CpuPlatform.check_and_update_config

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        inherited(vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    monkeypatch.setattr(CpuPlatform, "check_and_update_config", classmethod(check_and_update_config))


def metric(llm: Any, name: str) -> int:
    return sum(metric.value for metric in llm.get_metrics() if metric.name == f"vllm:{name}")


def ar_tokens(path: Path, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    model = ReferenceModel.from_pretrained(path)
    return [generate(model, prompt, mode="ar", max_new_tokens=max_tokens, ignore_eos=True).tokens for prompt in prompts]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """1 to 232 tokens: the longest end at the context's last position."""
    return random_prompts(24, VOCAB, longest=CONTEXT - TOKENS)


@pytest.fixture(scope="module")
def expected(agreeable_checkpoint: Path, prompts: list[list[int]]) -> list[list[int]]:
    return ar_tokens(agreeable_checkpoint, prompts, TOKENS)


TIGHT = {"max_num_batched_tokens": 64, "num_gpu_blocks_override": 16, "block_size": 32}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("block_length", [2, 8, 32])
def test_chunked_prefill_and_preemption(
    block_length: int,
    asynchronous: bool,
    agreeable_checkpoint: Path,
    prompts: list[list[int]],
    expected: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A budget of 64 tokens for 16 requests, and KV blocks for two of them."""
    if asynchronous:
        allow_async(monkeypatch)
    speculation = self_speculation(agreeable_checkpoint, block_length)
    with engine(agreeable_checkpoint, speculative_config=speculation, disable_log_stats=False, **TIGHT) as llm:
        assert llm.llm_engine.vllm_config.scheduler_config.async_scheduling == asynchronous
        outputs = greedy(llm, prompts, TOKENS)
        assert metric(llm, "num_preemptions") > 0
        assert metric(llm, "spec_decode_num_accepted_tokens") > 0
    assert [list(output.token_ids) for output in outputs] == expected


@pytest.fixture(scope="module")
def llm(agreeable_checkpoint: Path) -> Iterator[Any]:
    speculation = self_speculation(agreeable_checkpoint, 8)
    with engine(agreeable_checkpoint, speculative_config=speculation, disable_log_stats=False, block_size=32) as llm:
        yield llm


def test_prefix_cache_holds_causal_kv(agreeable_checkpoint: Path, llm: Any) -> None:
    """Hits on a shared prefix, on whole prompts, and on what speculation itself generated."""
    shared = random_prompts(1, VOCAB, longest=1)[0] * 100
    first = [shared + prompt for prompt in random_prompts(8, VOCAB, longest=60, seed=4)]
    answers = [list(output.token_ids) for output in greedy(llm, first, 60)]
    assert answers == ar_tokens(agreeable_checkpoint, first, 60)
    again = [prompt + answer for prompt, answer in zip(first, answers, strict=True)]
    hits = metric(llm, "prefix_cache_hits")
    outputs = [list(output.token_ids) for output in greedy(llm, first + again, 20)]
    assert metric(llm, "prefix_cache_hits") - hits > 8 * 100
    assert outputs == ar_tokens(agreeable_checkpoint, first + again, 20)


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 9])
def test_output_ends_at_max_tokens(
    max_tokens: int, llm: Any, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    outputs = greedy(llm, prompts[:8], max_tokens)
    assert [list(output.token_ids) for output in outputs] == [tokens[:max_tokens] for tokens in expected[:8]]


def test_output_ends_at_eos_inside_a_block(llm: Any, prompts: list[list[int]], expected: list[list[int]]) -> None:
    from vllm import SamplingParams

    eos = CONFIG["eos_token_id"]
    params = SamplingParams(temperature=0, max_tokens=TOKENS, stop_token_ids=[eos], detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    cut = [tokens[: tokens.index(eos) + 1] if eos in tokens else tokens for tokens in expected]
    assert sum(len(tokens) < TOKENS for tokens in cut) > 3, "EOS must occur, or this test shows nothing"
    assert [list(output.outputs[0].token_ids) for output in outputs] == cut


def test_no_request_is_left_without_room(agreeable_checkpoint: Path, llm: Any) -> None:
    """Prompts that leave 1 to 12 positions: near the end drafts shrink, and the answer fills the context."""
    prompts = [prompt[: CONTEXT - room] for room, prompt in enumerate(random_prompts(12, VOCAB, 256)[::-1], 1)]
    prompts = [(prompt * CONTEXT)[: CONTEXT - room] for room, prompt in enumerate(prompts, 1)]
    outputs = greedy(llm, prompts, 100)
    model = ReferenceModel.from_pretrained(agreeable_checkpoint)
    for room, (prompt, output) in enumerate(zip(prompts, outputs, strict=True), 1):
        exact = generate(model, prompt, mode="ar", max_new_tokens=room, ignore_eos=True).tokens
        assert list(output.token_ids) == exact, f"{room} positions left"


def test_aborted_requests_leave_nothing_behind(llm: Any, prompts: list[list[int]], expected: list[list[int]]) -> None:
    """Half of the requests are aborted with drafts in flight; the others, and later ones in their slots, are exact."""
    from vllm import SamplingParams

    core, params = llm.llm_engine, SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    for index, prompt in enumerate(prompts):
        core.add_request(str(index), {"prompt_token_ids": prompt}, params)
    finished: dict[str, list[int]] = {}
    steps = 0
    while core.has_unfinished_requests():
        for output in core.step():
            if output.finished:
                finished[output.request_id] = list(output.outputs[0].token_ids)
        steps += 1
        if steps == 5:
            core.abort_request([str(index) for index in range(0, len(prompts), 2)])
    for index in range(1, len(prompts), 2):
        assert finished[str(index)] == expected[index]
    assert [list(output.token_ids) for output in greedy(llm, prompts, TOKENS)] == expected
