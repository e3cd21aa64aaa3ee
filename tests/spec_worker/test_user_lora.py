"""User LoRA beside every mode: each request of a mixed batch verifies and drafts with its own adapter."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.engines import engine, random_prompts
from tests.scale import spread
from tests.spec_worker.batches import BLOCK, Ask, together, tokens
from tests.spec_worker.conftest import VOCAB, allow_async, linear, metric
from tests.spec_worker.loras import OPTIONS, UserLora, two_loras

PROMPTS = random_prompts(6, VOCAB, longest=100, seed=11)
DIFFUSION = {"nld_mode": "diffusion", "nld_threshold": 0.5}
BATCHES: dict[str, list[dict[str, Any]]] = {
    "linear": [{"nld_mode": "linear"}],
    "ar, diffusion": [{"nld_mode": "ar"}, DIFFUSION],
    "linear, diffusion": [{"nld_mode": "linear"}, DIFFUSION],
    "tree, linear": [{"nld_mode": "linear", "nld_tree_nodes": 6}, {"nld_mode": "linear"}],
    "all": [
        {"nld_mode": "ar"},
        {"nld_mode": "linear"},
        DIFFUSION,
        {"nld_mode": "linear", "nld_block_length": 3},
        {"nld_mode": "linear", "nld_tree_nodes": 7},
    ],
}


@pytest.fixture(scope="module")
def loras(agreeable_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[UserLora]:
    return two_loras(agreeable_checkpoint, tmp_path_factory.mktemp("loras"))


@pytest.mark.parametrize(("batch", "schedule"), spread([*product(BATCHES, ("sync", "async"))]))
def test_every_request_keeps_its_own_adapter(
    batch: str,
    schedule: str,
    agreeable_checkpoint: Path,
    loras: list[UserLora],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tokens show whose adapter verified and denoised; the number of verify steps shows whose drafted.

    The prompts are cut unevenly and answers end at different steps, so that the order of a pass's blocks is never that
    of the batch for long.
    """
    cases = [
        (Ask(prompt, extra, lora.request, {"max_tokens": 12 + 3 * index}), lora.model)
        for index, prompt in enumerate(PROMPTS)
        for extra in BATCHES[batch]
        for lora in loras
    ]
    if schedule == "async":
        allow_async(monkeypatch)
    with engine(agreeable_checkpoint, **linear(BLOCK), **OPTIONS) as llm:
        assert llm.llm_engine.vllm_config.scheduler_config.async_scheduling == (schedule == "async")
        found = tokens(together(llm, [ask for ask, _ in cases]))
        drafts = metric(llm, "spec_decode_num_drafts")
    exact = [ask.rounds(model) for ask, model in cases]
    for (ask, _), answer, one in zip(cases, found, exact, strict=True):
        assert answer == one.tokens, (ask.extra, ask.lora.lora_name, len(ask.prompt))
    drafted = zip(cases, exact, strict=True)
    assert drafts == sum(len(one.rounds) for (ask, _), one in drafted if ask.extra["nld_mode"] == "linear")


def test_the_adapters_change_what_every_mode_answers(loras: list[UserLora]) -> None:
    """Or the test above shows nothing."""
    for extra in BATCHES["all"]:
        asks = [Ask(prompt, extra) for prompt in PROMPTS]
        one, two = ([ask.rounds(lora.model).tokens for ask in asks] for lora in loras)
        assert sum(first != second for first, second in zip(one, two, strict=True)) > len(PROMPTS) / 2, extra
