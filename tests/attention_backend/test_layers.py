"""A served model's attention layers use our backend if it drafts, and the platform's own if it doesn't."""

from pathlib import Path
from typing import Any

import pytest

from attention_backend.masks import Causal
from attention_backend.rows import attach, step_mask
from spec_worker.state import NldModelState
from tests.engines import engine, greedy, random_prompts
from tests.tiny import CONFIG


def backends(llm: Any) -> set[Any]:
    """The backends of all attention layers."""
    return {
        layer.attn_backend for layer in llm.llm_engine.vllm_config.compilation_config.static_forward_context.values()
    }


@pytest.mark.parametrize(("settings", "ours"), [({"mode": "ar"}, False), ({}, True)], ids=["ar", "drafts"])
def test_layers_use_our_backend_only_for_drafting(settings: dict[str, Any], ours: bool, tiny_checkpoint: Path) -> None:
    with engine(tiny_checkpoint, additional_config={"nld": settings}) as llm:
        (backend,) = backends(llm)
        assert (backend.get_name() == "CUSTOM") == ours


def test_a_served_model_computes_row_masks(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks that say what the kernel computes anyway change nothing, in prompts, verified drafts and mixed batches."""
    prompts = random_prompts(8, CONFIG["vocab_size"], longest=150)
    prepare_attn = NldModelState.prepare_attn
    steps = []

    def every_other(state: Any, batch: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        metadata = prepare_attn(state, batch, *args, **kwargs)
        lengths = batch.num_scheduled_tokens.tolist()
        mask = step_mask([None if row % 2 else Causal(length) for row, length in enumerate(lengths)], lengths)
        attach(metadata, mask)
        steps.append(next(iter(metadata.values())))
        return metadata

    with engine(tiny_checkpoint, max_num_batched_tokens=64, max_model_len=256, block_size=32) as llm:
        plain = [list(done.token_ids) for done in greedy(llm, prompts, 24)]
        monkeypatch.setattr(NldModelState, "prepare_attn", every_other)
        llm.reset_prefix_cache()
        masked = [list(done.token_ids) for done in greedy(llm, prompts, 24)]
    assert masked == plain
    assert all(step.masked_step.mask is step.row_mask for step in steps)
    assert max(step.max_query_len for step in steps) > 32
    assert max(len(step.masked_step.batches[0].bias) for step in steps) > 1
