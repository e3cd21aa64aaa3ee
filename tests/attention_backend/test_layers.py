"""A served model's attention layers use our backend if it drafts, and the platform's own if it doesn't."""

from pathlib import Path
from typing import Any

import pytest

from tests.engines import engine


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
