"""A hundred requests of `python -m tests.soak`, on the tiny model: always the same ones."""

from pathlib import Path
from typing import Any

import pytest

from tests.engines import engine, random_prompts
from tests.scale import scaled
from tests.soak import GROUPS, answered, scheduled, soak
from tests.spec_worker.conftest import ANSWERS, VOCAB, allow_async, linear
from tests.spec_worker.loras import OPTIONS, two_loras

FEATURES: list[dict[str, Any]] = [
    {},
    {"max_tokens": 1},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5},
    {"stop_token_ids": list(ANSWERS[:2]), "min_tokens": 5},
    {"n": 2, "temperature": 1.0, "top_k": 1},
    {"temperature": 1.0},
]


@pytest.mark.parametrize("more", [False, True], ids=["plain", "schedule, user LoRA"])
def test_mixed_load_with_aborts(
    more: bool, agreeable_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": prompt} for prompt in random_prompts(4, VOCAB, longest=200, seed=41)]
    common: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "detokenize": False}
    requests = [(prompt, SamplingParams(**(common | feature))) for prompt in prompts for feature in FEATURES]
    users = [user.request for user in two_loras(agreeable_checkpoint, tmp_path)] if more else [None]
    options = linear(8, groups=GROUPS) | (OPTIONS if more else {})
    works = answered(agreeable_checkpoint, requests, users, **options)
    allow_async(monkeypatch)
    options |= {"max_num_batched_tokens": 16 * 24 if more else 64, "num_gpu_blocks_override": 20}
    with engine(agreeable_checkpoint, **options, **(scheduled(agreeable_checkpoint, 8) if more else {})) as llm:
        report = soak(llm, works, requests=scaled(120))
    assert report.wrong == []
    assert report.compared > 20 and report.aborted > 0 and report.preempted > 0 and report.accepted > 0
