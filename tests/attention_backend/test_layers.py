"""Which attention a served model's layers run: ours where it drafts, the platform's own where it does not."""

from pathlib import Path
from typing import Any

import pytest

from tests.engines import engine


def backends(llm: Any) -> set[Any]:
    """Of all attention layers."""
    return {
        layer.attn_backend for layer in llm.llm_engine.vllm_config.compilation_config.static_forward_context.values()
    }


@pytest.mark.parametrize(("settings", "ours"), [({"mode": "ar"}, False), ({}, True)], ids=["ar", "drafts"])
def test_layers_run_our_backend_where_the_model_drafts(
    settings: dict[str, Any], ours: bool, tiny_checkpoint: Path
) -> None:
    with engine(tiny_checkpoint, additional_config={"nld": settings}) as llm:
        (backend,) = backends(llm)
        assert (backend.get_name() == "CUSTOM") == ours
