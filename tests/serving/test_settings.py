"""`--additional-config nld`: each error is one sentence that names the field."""

from typing import Any

import pytest

from vllm_nld.serving.modes import MODES
from vllm_nld.serving.settings import Settings

GOOD: dict[str, dict[str, Any]] = {
    "nothing": {},
    "ar": {"mode": "ar"},
    "all": {"mode": "linear", "block_length": 16, "draft_threshold": 0.9, "draft_lora": "off"},
    "whole number": {"draft_threshold": 1},
    "a tree": {"tree_nodes": 64, "block_length": 16},
    "diffusion": {"mode": "diffusion", "threshold": 0.5, "max_denoise_steps": 8},
    "full quadratic": {"mode": "quadratic"},
    "sparse quadratic": {"mode": "quadratic", "groups": 4, "block_length": 8},
    "groups on request": {"groups": 2},
    "AR's verifier": {"verifier_mix": 1.0},
    "drafts on request": {"mode": "ar", "allowed_modes": ("ar", "linear"), "block_length": 8},
}


@pytest.mark.parametrize("raw", GOOD.values(), ids=GOOD)
def test_valid_settings(raw: dict[str, Any]) -> None:
    settings = Settings.parse(raw)
    assert all(getattr(settings, name) == value for name, value in raw.items())


def test_quadratic_is_offered_only_if_asked_for() -> None:
    """Its masks need room that other modes would pay for."""
    assert Settings().modes == ("auto", "ar", "linear", "diffusion") and not Settings().has_groups
    assert Settings(groups=2).modes == Settings(mode="quadratic").modes == tuple(MODES)
    assert Settings(mode="linear", allowed_modes=("linear", "quadratic")).has_groups
    assert not Settings(mode="ar").has_groups


def test_defaults() -> None:
    assert Settings.parse(None) == Settings.parse({}) == Settings()


BAD: dict[str, tuple[Any, str]] = {
    "not an object": ("linear", r"nld must be an object, not 'linear'"),
    "unknown field": ({"blocklength": 8}, r"nld\.blocklength is unknown; known are mode, allowed_modes, block_length"),
    "unknown mode": ({"mode": "fast"}, r"nld\.mode must be one of auto, ar, linear, quadratic, diffusion, not 'fast'"),
    "block as text": ({"block_length": "8"}, r"nld\.block_length must be an integer, not '8'"),
    "block as bool": ({"block_length": True}, r"nld\.block_length must be an integer"),
    "block too short": ({"block_length": 1}, r"nld\.block_length must be at least 2, not 1"),
    "threshold as text": ({"draft_threshold": "0.9"}, r"nld\.draft_threshold must be a number"),
    "threshold too high": ({"draft_threshold": 1.1}, r"nld\.draft_threshold must lie in \[0, 1\], not 1\.1"),
    "threshold is not a number": ({"draft_threshold": float("nan")}, r"nld\.draft_threshold must lie in \[0, 1\]"),
    "nodes as text": ({"tree_nodes": "x"}, r"nld\.tree_nodes must be an integer, not 'x'"),
    "nodes as bool": ({"tree_nodes": True}, r"nld\.tree_nodes must be an integer, not True"),
    "no number of nodes": ({"tree_nodes": None}, r"nld\.tree_nodes must be an integer, not None"),
    "nodes below 0": ({"tree_nodes": -1}, r"nld\.tree_nodes must be at least 0, not -1"),
    "too many nodes": ({"tree_nodes": 5000}, r"nld\.tree_nodes must be at most 512, not 5000"),
    "a tree in several passes": (
        {"tree_nodes": 8, "draft_threshold": 0.5},
        r"tree_nodes 8 contradicts draft_threshold",
    ),
    "groups as text": ({"groups": "2"}, r"nld\.groups must be an integer, not '2'"),
    "no groups": ({"groups": 0}, r"nld\.groups must be at least 1, not 0"),
    "more groups than drafts": ({"groups": 9, "block_length": 8}, r"nld\.groups must be at most block_length 8.*not 9"),
    "a lossy verifier": ({"verifier_mix": 0.5}, r"nld\.verifier_mix must be 1, not 0\.5: .*would be lossy"),
    "no verifier": ({"verifier_mix": None}, r"nld\.verifier_mix must be 1, not None"),
    "verifier as text": ({"verifier_mix": "1"}, r"nld\.verifier_mix must be 1, not '1'"),
    "verifier as bool": ({"verifier_mix": True}, r"nld\.verifier_mix must be 1, not True"),
    "groups below 0": ({"groups": -1}, r"nld\.groups must be at least 1, not -1"),
    "groups of nobody": (
        {"groups": 2, "allowed_modes": ["auto", "linear"]},
        r"nld\.groups 2 has no use without mode 'quadratic' in allowed_modes",
    ),
    "adapter as bool": (
        {"draft_lora": False},
        r"nld\.draft_lora must be 'auto', 'off', a folder or a repository, not False",
    ),
    "unknown kernel": ({"mask_kernel": "cuda"}, r"nld\.mask_kernel must be one of auto, triton, xformers, not 'cuda'"),
    "drafts in ar": ({"mode": "ar", "block_length": 8}, r"nld\.block_length has no use if only mode 'ar' is served"),
    "denoising in ar": ({"mode": "ar", "threshold": 0.5}, r"nld\.threshold has no use"),
    "no floor": ({"min_acceptance_length": 0.5}, r"nld\.min_acceptance_length must be at least 1, not 0\.5"),
    "no expectation": ({"expected_acceptance_length": 0}, r"nld\.expected_acceptance_length must be at least 1, not 0"),
    "floor as text": ({"min_acceptance_length": "2"}, r"nld\.min_acceptance_length must be a number, not '2'"),
    "no passes": ({"max_denoise_steps": 0}, r"nld\.max_denoise_steps must be at least 1, not 0"),
    "modes as text": (
        {"allowed_modes": "ar"},
        r"nld\.allowed_modes must be a list of auto, ar, linear, quadratic, diffusion",
    ),
    "no modes": ({"allowed_modes": []}, r"nld\.allowed_modes must be a list"),
    "unknown among modes": ({"allowed_modes": ["linear", "fast"]}, r"nld\.allowed_modes must be a list"),
    "mode not among modes": ({"allowed_modes": ["ar"]}, r"allowed_modes \['ar'\] leaves out the mode 'auto'"),
}


@pytest.mark.parametrize(("raw", "message"), BAD.values(), ids=BAD)
def test_invalid_settings_are_refused(raw: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings.parse(raw)
