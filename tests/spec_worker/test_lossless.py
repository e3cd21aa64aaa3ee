"""Greedy output of linear self-speculation equals the reference's AR output, token for token, in fp32.

Every engine below is a way in which speculation has gone wrong before: small budgets, preemption with drafts in flight,
asynchronous scheduling, shared prefixes, a block without room at the context's end.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines import engine, greedy, random_prompts
from tests.spec_worker.conftest import CONTEXT, TOKENS, VOCAB, ar_tokens, linear, metric, token_ids
from tests.tiny import CONFIG
from vllm_nld.reference import ReferenceModel, generate


def allow_async(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what the CPU platform's hook does: asynchronous scheduling is the default on GPUs."""
    from vllm.platforms.cpu import CpuPlatform

    inherited = CpuPlatform.check_and_update_config

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        inherited(vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    monkeypatch.setattr(CpuPlatform, "check_and_update_config", classmethod(check_and_update_config))


TIGHT = {"max_num_batched_tokens": 64, "num_gpu_blocks_override": 14}


@pytest.mark.parametrize(
    ("block_length", "asynchronous"),
    [(2, False), (8, True), (32, False), (32, True)],
    ids=["2-sync", "8-async", "32-sync", "32-async"],
)
def test_chunked_prefill_and_preemption(
    block_length: int,
    asynchronous: bool,
    agreeable_checkpoint: Path,
    prompts: list[list[int]],
    expected: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A budget of 64 tokens for 16 requests, and KV blocks for less than two of the longest."""
    if asynchronous:
        allow_async(monkeypatch)
    with engine(agreeable_checkpoint, **linear(block_length), **TIGHT) as llm:
        assert llm.llm_engine.vllm_config.scheduler_config.async_scheduling == asynchronous
        outputs = greedy(llm, prompts, TOKENS)
        assert metric(llm, "num_preemptions") > 0
        assert metric(llm, "spec_decode_num_accepted_tokens") > 0
    assert token_ids(outputs) == expected


@pytest.mark.parametrize("chunk", [1, 33])
def test_prefill_remainder_of_one_token(chunk: int, agreeable_checkpoint: Path, reference: ReferenceModel) -> None:
    """Prompts one token longer than a chunk: the remainder has a decode's shape but is none."""
    budget = 32 + chunk - 1
    prompts = [random_prompts(1, VOCAB, longest=1)[0] * (budget * turns + 1) for turns in (1, 2, 3)]
    with engine(agreeable_checkpoint, **linear(8), max_num_batched_tokens=budget, max_num_seqs=1) as llm:
        outputs = greedy(llm, prompts, 8)
    assert token_ids(outputs) == ar_tokens(reference, prompts, 8)


@pytest.fixture(scope="module")
def llm(agreeable_checkpoint: Path) -> Iterator[Any]:
    with engine(agreeable_checkpoint, **linear(8)) as llm:
        yield llm


def test_prefix_cache_holds_causal_kv(reference: ReferenceModel, llm: Any) -> None:
    """Hits on a shared prefix, on whole prompts, and on what speculation itself generated."""
    shared = random_prompts(1, VOCAB, longest=1)[0] * 100
    first = [shared + prompt for prompt in random_prompts(6, VOCAB, longest=60, seed=4)]
    answers = token_ids(greedy(llm, first, 60))
    assert answers == ar_tokens(reference, first, 60)
    again = [prompt + answer for prompt, answer in zip(first, answers, strict=True)]
    hits = metric(llm, "prefix_cache_hits")
    outputs = token_ids(greedy(llm, first + again, 20))
    assert metric(llm, "prefix_cache_hits") - hits > 6 * 100
    assert outputs == ar_tokens(reference, first + again, 20)


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 9])
def test_output_ends_at_max_tokens(
    max_tokens: int, llm: Any, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    assert token_ids(greedy(llm, prompts[:8], max_tokens)) == [tokens[:max_tokens] for tokens in expected[:8]]


def test_output_ends_at_eos_inside_a_block(llm: Any, prompts: list[list[int]], expected: list[list[int]]) -> None:
    from vllm import SamplingParams

    eos = CONFIG["eos_token_id"]
    params = SamplingParams(temperature=0, max_tokens=TOKENS, stop_token_ids=[eos], detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    cut = [tokens[: tokens.index(eos) + 1] if eos in tokens else tokens for tokens in expected]
    assert sum(len(tokens) < TOKENS for tokens in cut) > 3, "EOS must occur, or this test shows nothing"
    assert [list(output.outputs[0].token_ids) for output in outputs] == cut


def test_no_request_is_left_without_room(reference: ReferenceModel, llm: Any) -> None:
    """Prompts that leave 1 to 12 positions: near the end drafts shrink, and the answer fills the context."""
    rooms = range(1, 13)
    prompts = [(random_prompts(1, VOCAB, 256, seed=room)[0] * CONTEXT)[: CONTEXT - room] for room in rooms]
    for room, prompt, output in zip(rooms, prompts, greedy(llm, prompts, 100), strict=True):
        exact = generate(reference, prompt, mode="ar", max_new_tokens=room, ignore_eos=True).tokens
        assert list(output.token_ids) == exact, f"{room} positions left"


def test_aborted_requests_leave_nothing_behind(llm: Any, prompts: list[list[int]], expected: list[list[int]]) -> None:
    """Half of the requests are aborted with drafts in flight; the others, and later ones in their slots, are exact."""
    from vllm import SamplingParams

    core, params = llm.llm_engine, SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    names = [core.add_request(str(i), {"prompt_token_ids": prompt}, params) for i, prompt in enumerate(prompts)]
    finished: dict[str, list[int]] = {}
    for step in range(1000):
        for output in core.step():
            if output.finished:
                finished[output.request_id] = list(output.outputs[0].token_ids)
        if step == 5:
            core.abort_request([str(index) for index in range(0, len(names), 2)])
        if not core.has_unfinished_requests():
            break
    for index in range(1, len(prompts), 2):
        assert finished[str(index)] == expected[index]
    assert token_ids(greedy(llm, prompts, TOKENS)) == expected
