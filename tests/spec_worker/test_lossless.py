"""Greedy output of self-speculation, linear, with draft trees, and quadratic, equals the reference's AR output in fp32.

Every engine below is a way in which speculation has gone wrong before: small budgets, preemption with drafts in flight,
asynchronous scheduling, shared prefixes, a block without room at the context's end.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.engines import engine, greedy, random_prompts
from tests.scale import spread
from tests.spec_worker.conftest import CONTEXT, TOKENS, VOCAB, allow_async, ar_tokens, linear, metric, token_ids
from tests.spec_worker.leaks import assert_nothing_left
from tests.tiny import CONFIG
from vllm_nld.reference import ReferenceModel, generate

EOS = CONFIG["eos_token_id"]


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, and what AR decoding answers."""

    prompt: list[int]
    max_tokens: int
    eos: bool  # whether EOS ends it
    answer: list[int]

    def params(self) -> Any:
        from vllm import SamplingParams

        stops = {"stop_token_ids": [EOS]} if self.eos else {"ignore_eos": True}
        return SamplingParams(temperature=0, max_tokens=self.max_tokens, detokenize=False, **stops)


@pytest.fixture(scope="module")
def asks(reference: ReferenceModel) -> list[Ask]:
    """60 requests: 1 to 236 prompt tokens, shared prefixes, no room left; 1 to 60 tokens, EOS or not."""
    prompts = [(prompt * 28)[:28] for prompt in random_prompts(12, VOCAB, longest=28, seed=29)]  # one KV block each
    prompts += random_prompts(28, VOCAB, longest=CONTEXT - TOKENS, seed=30)
    prompts += [prompts[22] + prompt for prompt in random_prompts(10, VOCAB, longest=100, seed=32)]
    prompts += [prompt[:1] * (CONTEXT - room) for room, prompt in enumerate(random_prompts(10, VOCAB, 9, seed=33), 1)]
    asks = []
    for index, prompt in enumerate(prompts):
        max_tokens = min((1, 2, 9, 40, 40, 60)[index % 6] if index >= 12 else 40, CONTEXT - len(prompt))
        tokens, eos = ar_tokens(reference, [prompt], max_tokens)[0], index % 4 > 1
        if eos and EOS in tokens:
            tokens = tokens[: tokens.index(EOS) + 1]
        asks.append(Ask(prompt, max_tokens, eos, tokens))
    assert sum(ask.eos and ask.answer[-1] == EOS and len(ask.answer) < ask.max_tokens for ask in asks) > 5
    return asks


@dataclass(frozen=True, slots=True)
class Case:
    """An engine of the matrix."""

    block_length: int
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    asynchronous: bool = False
    preempts: bool = False


TIGHT = {"max_num_batched_tokens": 64, "num_gpu_blocks_override": 11}  # KV blocks for one of the longest
CASES = {
    "2": Case(2),
    "2, tight": Case(2, {}, TIGHT, preempts=True),
    "8, one at a time, async": Case(8, {}, {"max_num_seqs": 1}, asynchronous=True),
    "8, tight, async": Case(8, {}, TIGHT, asynchronous=True, preempts=True),
    "8, threshold, tight": Case(8, {"draft_threshold": 0.9}, TIGHT, preempts=True),
    "8, no adapter, no prefix cache, async": Case(
        8, {"draft_lora": "off"}, {"enable_prefix_caching": False}, asynchronous=True
    ),
    "32, tight, four at a time": Case(
        32, {}, TIGHT | {"max_num_seqs": 4, "num_gpu_blocks_override": 11}, preempts=True
    ),
    "32, tight, async": Case(32, {}, TIGHT, asynchronous=True, preempts=True),
    "32, threshold, no adapter, async": Case(32, {"draft_threshold": 0.9, "draft_lora": "off"}, asynchronous=True),
}
TREES = {
    "8, tree of 7": Case(8, {"tree_nodes": 7}),
    "8, tree of 20, tight": Case(8, {"tree_nodes": 20}, TIGHT, preempts=True),
    "8, tree of 20, tight, async": Case(8, {"tree_nodes": 20}, TIGHT, asynchronous=True, preempts=True),
    "8, tree of 40, one at a time, async": Case(8, {"tree_nodes": 40}, {"max_num_seqs": 1}, asynchronous=True),
    "2, tree of 9, tight, async": Case(2, {"tree_nodes": 9}, TIGHT, asynchronous=True, preempts=True),
    "32, tree of 12, no adapter, no prefix cache": Case(
        32, {"tree_nodes": 12, "draft_lora": "off"}, {"enable_prefix_caching": False}
    ),
    "32, tree of 63, tight, four at a time": Case(
        32, {"tree_nodes": 63}, TIGHT | {"max_num_seqs": 4, "num_gpu_blocks_override": 11}, preempts=True
    ),
    "32, tree of 31, tight, async": Case(32, {"tree_nodes": 31}, TIGHT, asynchronous=True, preempts=True),
    "8, tree of 100, async": Case(8, {"tree_nodes": 100}, asynchronous=True),
}


GROUPS = {
    "8, all groups": Case(8, {"mode": "quadratic"}),
    "8, all groups, async": Case(8, {"mode": "quadratic"}, asynchronous=True),
    "8, all groups, one at a time, async": Case(8, {"mode": "quadratic"}, {"max_num_seqs": 1}, asynchronous=True),
    "2, all groups, tight": Case(2, {"mode": "quadratic"}, TIGHT, preempts=True),
    "8, 2 groups, tight": Case(8, {"mode": "quadratic", "groups": 2}, TIGHT, preempts=True),
    "8, 3 groups, tight, async": Case(8, {"mode": "quadratic", "groups": 3}, TIGHT, asynchronous=True, preempts=True),
    "8, 4 groups, no adapter, no prefix cache": Case(
        8, {"mode": "quadratic", "groups": 4, "draft_lora": "off"}, {"enable_prefix_caching": False}
    ),
    "32, 1 group, tight, async": Case(32, {"mode": "quadratic", "groups": 1}, TIGHT, asynchronous=True, preempts=True),
    "32, 4 groups, async": Case(32, {"mode": "quadratic", "groups": 4}, asynchronous=True),
}
ALL = CASES | TREES | GROUPS


@pytest.mark.parametrize("name", spread([*ALL]))
def test_matrix(name: str, asks: list[Ask], agreeable_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """540 requests with chains: block lengths, thresholds, adapter, concurrency 1 to 16, preemption, sync and async.

    As many with trees, and with groups of masks.
    """
    case = ALL[name]
    if case.asynchronous:
        allow_async(monkeypatch)
    with engine(agreeable_checkpoint, **(linear(case.block_length, **case.settings) | case.options)) as llm:
        assert llm.llm_engine.vllm_config.scheduler_config.async_scheduling == case.asynchronous
        outputs = llm.generate(
            [{"prompt_token_ids": ask.prompt} for ask in asks], [ask.params() for ask in asks], use_tqdm=False
        )
        assert (metric(llm, "num_preemptions") > 0) >= case.preempts
        assert metric(llm, "spec_decode_num_accepted_tokens") > 0
        assert_nothing_left(llm)
    assert [list(output.outputs[0].token_ids) for output in outputs] == [ask.answer for ask in asks]


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

    params = SamplingParams(temperature=0, max_tokens=TOKENS, stop_token_ids=[EOS], detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    cut = [tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens for tokens in expected]
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
    assert_nothing_left(llm)
