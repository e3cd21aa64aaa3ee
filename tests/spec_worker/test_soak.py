"""A few seconds of `python -m tests.soak`, on the tiny model."""

from pathlib import Path
from typing import Any

import pytest

from tests.engines import engine, random_prompts
from tests.scale import scaled
from tests.soak import answered, soak
from tests.spec_worker.conftest import ANSWERS, VOCAB, allow_async, linear

FEATURES: list[dict[str, Any]] = [
    {},
    {"max_tokens": 1},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5},
    {"stop_token_ids": list(ANSWERS[:2]), "min_tokens": 5},
    {"n": 2, "temperature": 1.0, "top_k": 1},
    {"temperature": 1.0},
]


def test_mixed_load_with_aborts(agreeable_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": prompt} for prompt in random_prompts(6, VOCAB, longest=200, seed=41)]
    common: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "detokenize": False}
    requests = [(prompt, SamplingParams(**(common | feature))) for prompt in prompts for feature in FEATURES]
    works = answered(agreeable_checkpoint, requests, **linear(8))
    allow_async(monkeypatch)
    with engine(agreeable_checkpoint, **linear(8), max_num_batched_tokens=64, num_gpu_blocks_override=20) as llm:
        report = soak(llm, works, seconds=scaled(4))
    assert report.wrong == []
    assert report.compared > 20 and report.aborted > 0 and report.preempted > 0 and report.accepted > 0
