"""Diffusion in the engine gives the reference's tokens in fp32, whatever runs beside it, however it is scheduled."""

from pathlib import Path
from typing import Any

import pytest

from tests.engines import engine, random_prompts
from tests.scale import spread
from tests.spec_worker.conftest import CONTEXT, TOKENS, VOCAB, linear, metric, token_ids
from tests.spec_worker.test_lossless import TIGHT, allow_async
from vllm_nld.reference import ReferenceModel, generate

PROMPTS = random_prompts(20, VOCAB, longest=CONTEXT - TOKENS, seed=3)
MIXTURE: list[dict[str, Any]] = [
    {"nld_mode": "diffusion", "nld_threshold": threshold, "nld_block_length": block_length}
    for threshold in (0, 0.3, 0.5, 0.9, 1)
    for block_length in (8, 32)
]
MIXTURE += [
    {"nld_mode": "ar"},
    {"nld_mode": "linear", "nld_tree_nodes": 31},
    {"nld_mode": "linear"},
    {"nld_mode": "linear", "nld_draft_threshold": 0.4},
    {"nld_tree_nodes": 20, "nld_block_length": 8},
    {},
]


def expected(
    model: ReferenceModel, prompt: list[int], asked: dict[str, Any], max_tokens: int = TOKENS, **options: Any
) -> list[int]:
    """What the reference answers to a request with these parameters."""
    mode = asked.get("nld_mode", "linear")
    return generate(
        model,
        prompt,
        mode=mode,
        max_new_tokens=max_tokens,
        block_length=asked.get("nld_block_length", 32),
        threshold=asked.get("nld_threshold") if mode == "diffusion" else 0.0,
        **{"ignore_eos": True} | options,
    ).tokens


def answers(
    llm: Any, prompts: list[list[int]], asked: list[dict[str, Any]], max_tokens: int = TOKENS, **options: Any
) -> list[list[int]]:
    """The engine's greedy answers, each request with its own parameters."""
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=0,
            max_tokens=max_tokens,
            detokenize=False,
            extra_args=extra,
            **{"ignore_eos": True} | options,
        )
        for extra in asked
    ]
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    return token_ids([output.outputs[0] for output in llm.generate(inputs, params, use_tqdm=False)])


def cases(count: int) -> tuple[list[list[int]], list[dict[str, Any]]]:
    """Prompts and parameters, every combination of neighbours different."""
    return [PROMPTS[i % len(PROMPTS)] for i in range(count)], [MIXTURE[i % len(MIXTURE)] for i in range(count)]


@pytest.mark.parametrize("schedule", spread(["async", "sync"]))
def test_a_mixed_batch_answers_as_each_request_alone(
    schedule: str, agreeable_checkpoint: Path, reference: ReferenceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget that cuts prompts, and KV blocks for less than two of the longest, so that requests are preempted."""
    if schedule == "async":
        allow_async(monkeypatch)
    prompts, asked = cases(32)
    with engine(agreeable_checkpoint, **linear(32), **TIGHT) as llm:
        assert llm.llm_engine.vllm_config.scheduler_config.async_scheduling == (schedule == "async")
        found = answers(llm, prompts, asked)
        assert metric(llm, "num_preemptions") > 0
    for prompt, extra, tokens in zip(prompts, asked, found, strict=True):
        assert tokens == expected(reference, prompt, extra), (len(prompt), extra)
