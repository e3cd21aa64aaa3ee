"""A context that vLLM has fitted to the memory is the context: requests end where they would if the user had set it."""

from pathlib import Path
from typing import Any

import pytest

from tests.engines import engine, random_prompts
from tests.spec_worker.batches import Ask, together, tokens
from tests.spec_worker.conftest import CONTEXT, VOCAB, linear
from vllm_nld.serving.modes import MODES

BLOCK, FITTED = 8, 96  # four blocks of KV, one of which vLLM keeps


def asks(modes: list[str]) -> list[Ask]:
    """Answers that end at the context's last token, in each mode."""
    prompts = [prompt[:FITTED] for prompt in random_prompts(40, VOCAB, longest=FITTED - 4) if len(prompt) > 60]
    common = {"max_tokens": FITTED}
    return [Ask(prompt, {"nld_mode": mode}, sampling=common) for mode in modes for prompt in prompts[:5]]


@pytest.fixture(scope="module")
def modes() -> list[str]:
    return [name for name in MODES if name != "quadratic"]  # which has to be offered


def test_a_fitted_context_equals_one_that_was_set(agreeable_checkpoint: Path, modes: list[str]) -> None:
    found: dict[str, Any] = {}
    for name, options in {"set": {"max_model_len": FITTED}, "fitted": {}}.items():
        with engine(agreeable_checkpoint, **linear(BLOCK, tree_nodes=20), num_gpu_blocks_override=4, **options) as llm:
            assert llm.llm_engine.vllm_config.model_config.max_model_len == FITTED < CONTEXT
            found[name] = tokens(together(llm, asks(modes)))
    assert found["fitted"] == found["set"]
    assert all(len(one.prompt) + len(answer) == FITTED for one, answer in zip(asks(modes), found["set"], strict=True))


def test_a_context_without_room_for_a_block_ends_start_up(agreeable_checkpoint: Path) -> None:
    with (
        pytest.raises(ValueError, match="room for 32 tokens, not for a block of 64"),
        engine(agreeable_checkpoint, **linear(64), hf_overrides={"block_size": 64}, num_gpu_blocks_override=2),
    ):
        pass
