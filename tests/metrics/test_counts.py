"""Counters equal the reference loops' counts exactly, in every mode: alone, mixed, and with aborted requests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines import greedy, random_prompts
from tests.metrics.conftest import Counted, counting
from tests.spec_worker.conftest import VOCAB
from vllm_nld.reference import ReferenceModel, generate
from vllm_nld.serving.modes import MODES

TOKENS, BLOCK = 20, 8


@pytest.fixture(scope="module")
def shared_engine(agreeable_checkpoint: Path) -> Iterator[Counted]:
    settings = {"mode": "linear", "block_length": BLOCK, "groups": 2}
    with counting(agreeable_checkpoint, block_size=32, additional_config={"nld": settings}) as counted:
        yield counted


@pytest.fixture
def linear_engine(shared_engine: Counted) -> Counted:
    """The shared engine with all counters at 0."""
    return Counted(shared_engine.llm)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Short enough that no block is shortened at the context's end. Reused prompts have all but one token cached."""
    return random_prompts(12, VOCAB, longest=120)


def test_linear_counts_equal_the_reference(
    linear_engine: Counted, reference: ReferenceModel, prompts: list[list[int]]
) -> None:
    """A longer reference run shows what the last step accepted beyond max_tokens."""
    options: dict[str, Any] = {"mode": "linear", "block_length": BLOCK, "ignore_eos": True}
    expected = [generate(reference, prompt, max_new_tokens=TOKENS, **options) for prompt in prompts]
    longer = [generate(reference, prompt, max_new_tokens=TOKENS + BLOCK, **options) for prompt in prompts]
    rounds = [run for one, more in zip(expected, longer, strict=True) for run in more.rounds[: len(one.rounds)]]
    greedy(linear_engine.llm, prompts, TOKENS)

    assert linear_engine("nld:requests_total", mode="linear", reason="length") == len(prompts)
    assert linear_engine("nld:output_tokens_total", mode="linear") == len(prompts) * TOKENS
    assert linear_engine("nld:forwards_total", mode="linear") == sum(one.nfe for one in expected)
    assert linear_engine("nld:forwards_total", kind="draft") == linear_engine("nld:blocks_committed_total")
    assert linear_engine("nld:acceptance_length_count") == len(rounds)
    assert linear_engine("nld:acceptance_length_sum") == sum(rounds)
    assert max(rounds) > 1, "some draft must be accepted, or this test proves little"
    assert linear_engine("nld:drafts_total", block_length=str(BLOCK)) == len(rounds)
    assert linear_engine("nld:draft_tokens_total") == len(rounds) * (BLOCK - 1)
    accepted = linear_engine("nld:accepted_draft_tokens_total")
    assert accepted == sum(rounds) - len(rounds)
    assert accepted + linear_engine("nld:rejected_draft_tokens_total") == len(rounds) * (BLOCK - 1)
    assert linear_engine("vllm:spec_decode_num_drafts_total") == len(rounds)
    assert linear_engine("vllm:spec_decode_num_accepted_tokens_total") == accepted


def test_aborted_requests_count_the_tokens_they_got(linear_engine: Counted, prompts: list[list[int]]) -> None:
    from vllm import SamplingParams

    core = linear_engine.llm.llm_engine
    given: dict[str, int] = {}
    for number, prompt in enumerate(prompts[:4]):
        params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True, detokenize=False)
        core.add_request(f"gone-{number}", {"prompt_token_ids": prompt}, params)
    for _ in range(6):
        for output in core.step():
            given[output.request_id] = len(output.outputs[0].token_ids)
    core.abort_request(["gone-0", "gone-1", "gone-2"])
    while core.has_unfinished_requests():
        for output in core.step():
            given[output.request_id] = len(output.outputs[0].token_ids)
    assert linear_engine("nld:requests_total", reason="abort") == 3
    assert linear_engine("nld:requests_total", reason="length") == 1
    assert linear_engine("nld:request_latency_seconds_count", mode="linear") == 4, "aborted ones ended, too"
    assert linear_engine("nld:output_tokens_total") == sum(given.values())
    assert linear_engine("nld:acceptance_length_count") == linear_engine("vllm:spec_decode_num_drafts_total") > 0


def counted_alone(counted: Counted, prompts: list[list[int]], **extra: Any) -> None:
    greedy(counted.llm, prompts, TOKENS, extra_args=extra)


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.9])
def test_diffusion_counts_equal_the_reference(
    linear_engine: Counted, reference: ReferenceModel, prompts: list[list[int]], threshold: float
) -> None:
    """Denoising passes plus one target forward per block, without the prefill. Denoised blocks are not verified, so
    they don't appear in vLLM's speculation metrics."""
    options: dict[str, Any] = {"mode": "diffusion", "block_length": BLOCK, "ignore_eos": True, "threshold": threshold}
    expected = [generate(reference, prompt, max_new_tokens=TOKENS, **options) for prompt in prompts]
    blocks = sum(len(one.rounds) for one in expected)
    counted_alone(linear_engine, prompts, nld_mode="diffusion", nld_threshold=threshold)

    assert linear_engine("nld:output_tokens_total", mode="diffusion") == len(prompts) * TOKENS
    assert linear_engine("nld:forwards_total", mode="diffusion") == sum(one.nfe for one in expected)
    assert linear_engine("nld:forwards_total", kind="target") == blocks
    assert linear_engine("nld:blocks_committed_total", mode="diffusion") == blocks
    assert linear_engine("nld:denoising_passes_count") == blocks
    assert linear_engine("nld:denoising_passes_sum") == sum(one.nfe for one in expected) - blocks
    assert linear_engine("nld:acceptance_length_count") == 0
    assert linear_engine("vllm:spec_decode_num_drafts_total") == 0


def test_each_draft_pass_is_counted(
    linear_engine: Counted, reference: ReferenceModel, prompts: list[list[int]]
) -> None:
    options: dict[str, Any] = {"mode": "linear", "block_length": BLOCK, "ignore_eos": True, "threshold": 0.4}
    expected = [generate(reference, prompt, max_new_tokens=TOKENS, **options) for prompt in prompts]
    counted_alone(linear_engine, prompts, nld_mode="linear", nld_draft_threshold=0.4)
    assert linear_engine("nld:forwards_total", mode="linear") == sum(one.nfe for one in expected)
    assert linear_engine("nld:forwards_total", kind="draft") > linear_engine("nld:blocks_committed_total")


def test_trees_are_counted(linear_engine: Counted, reference: ReferenceModel, prompts: list[list[int]]) -> None:
    """Nodes are draft tokens; what is accepted of a tree is its depth; a tree's block length stays the drafted one."""
    options: dict[str, Any] = {"mode": "linear", "block_length": 5, "ignore_eos": True, "tree_nodes": 7}
    expected = [generate(reference, prompt, max_new_tokens=TOKENS, **options) for prompt in prompts]
    longer = [generate(reference, prompt, max_new_tokens=TOKENS + 5, **options) for prompt in prompts]
    rounds = [run for one, more in zip(expected, longer, strict=True) for run in more.rounds[: len(one.rounds)]]
    asked: dict[str, Any] = {"nld_tree_nodes": 7, "nld_block_length": 5}
    counted_alone(linear_engine, prompts, **asked)
    assert linear_engine("nld:forwards_total", mode="linear") == sum(one.nfe for one in expected)
    assert linear_engine("nld:acceptance_length_sum") == sum(rounds)
    assert linear_engine("nld:trees_total", mode="linear") == len(rounds)
    assert linear_engine("nld:tree_nodes_total", mode="linear") == 7 * len(rounds)
    assert linear_engine("nld:draft_tokens_total") == 7 * len(rounds)
    assert linear_engine("nld:tree_accepted_depth_count") == len(rounds)
    assert linear_engine("nld:tree_accepted_depth_sum") == sum(rounds) - len(rounds) > 0
    assert linear_engine("nld:drafts_total", block_length="5") == len(rounds)
    assert linear_engine("nld:tree_fallbacks_total") == 0


def test_groups_are_counted(linear_engine: Counted, reference: ReferenceModel, prompts: list[list[int]]) -> None:
    """Each block comes from a group or from a draft pass. Masks are no draft tokens.

    The first block comes from masks, if the prompt's last token is not the only one that is left to compute.
    """
    prompts = [prompt for prompt in prompts if len(prompt) % 32 != 1]  # of the others all but one may be cached
    options: dict[str, Any] = {"mode": "quadratic", "block_length": 5, "ignore_eos": True, "groups": 2}
    expected = [generate(reference, prompt, max_new_tokens=TOKENS, **options) for prompt in prompts]
    counted_alone(linear_engine, prompts, nld_mode="quadratic", nld_block_length=5)
    rounds = sum(len(one.rounds) for one in expected)
    passes = sum(one.nfe for one in expected) - len(prompts) - rounds
    assert linear_engine("nld:forwards_total", mode="quadratic", kind="draft") == passes
    assert linear_engine("nld:forwards_total", mode="quadratic", kind="target") == len(prompts) + rounds
    assert linear_engine("nld:group_misses_total", mode="quadratic") == passes
    assert linear_engine("nld:group_hits_total", mode="quadratic") == rounds - passes > len(prompts)
    assert linear_engine("nld:mask_rows_total", mode="quadratic") == 2 * 5 * rounds
    assert linear_engine("nld:draft_tokens_total") == linear_engine("vllm:spec_decode_num_draft_tokens_total")
    assert linear_engine("nld:draft_tokens_total") == 4 * rounds
    assert linear_engine("nld:drafts_total", block_length="5") == rounds
    assert linear_engine("nld:group_hits_total") == linear_engine("nld:group_hits_total", mode="quadratic")


def test_requests_that_fall_back_to_the_chain_are_counted(linear_engine: Counted, prompts: list[list[int]]) -> None:
    extra: dict[str, Any] = {"nld_tree_nodes": 7}
    greedy(linear_engine.llm, prompts[:3], TOKENS, extra_args=extra, presence_penalty=0.5)
    assert linear_engine("nld:tree_fallbacks_total", mode="linear") == 3
    assert linear_engine("nld:trees_total") == 0 < linear_engine("nld:drafts_total", block_length=str(BLOCK))


def test_modes_in_one_batch_are_counted_separately(linear_engine: Counted, prompts: list[list[int]]) -> None:
    from vllm import SamplingParams

    modes = tuple(MODES) * 3
    params = [
        SamplingParams(
            temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False, extra_args={"nld_mode": mode}
        )
        for mode in modes
    ]
    given: list[Any] = [{"prompt_token_ids": prompt} for prompt in (prompts * 2)[: len(modes)]]
    linear_engine.llm.generate(given, params, use_tqdm=False)
    for mode in MODES:
        assert linear_engine("nld:requests_total", mode=mode) == 3
        assert linear_engine("nld:output_tokens_total", mode=mode) == 3 * TOKENS
    assert linear_engine("nld:forwards_total", mode="ar") == 3 * TOKENS
    assert linear_engine("nld:draft_tokens_total", mode="ar") == 0
    rounds = [linear_engine("nld:acceptance_length_count", mode=mode) for mode in ("linear", "auto", "quadratic")]
    assert linear_engine("vllm:spec_decode_num_drafts_total") == sum(rounds) and rounds[0] > 0
