"""A request's decoding parameters: valid ones are read, and errors name the field and its range."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from tests.bad_requests import bad_parameters
from tests.scale import scaled
from vllm_nld.serving.decoding import Decoding
from vllm_nld.serving.modes import MODES
from vllm_nld.serving.requests import ServerModes

SERVED = ServerModes("linear", tuple(MODES), block_length=32, max_denoise_steps=None, most_nodes=64, groups=32)
SPARSE = replace(SERVED, groups=4)
TREES = replace(SERVED, tree_nodes=16)

GOOD: dict[str, tuple[dict[str, Any] | None, Decoding]] = {
    "nothing": (None, Decoding("linear", 32)),
    "auto": ({"nld_mode": "auto"}, Decoding("auto", 32)),
    "auto with a limit": ({"nld_mode": "auto", "nld_block_length": 8}, Decoding("auto", 8)),
    "other arguments": ({"top_h": 3, "kv_transfer_params": {}}, Decoding("linear", 32)),
    "ar": ({"nld_mode": "ar"}, Decoding("ar")),
    "linear": ({"nld_draft_threshold": 1, "nld_block_length": 2}, Decoding("linear", 2, 1.0)),
    "linear with a tree": ({"nld_tree_nodes": 64, "nld_block_length": 8}, Decoding("linear", 8, tree_nodes=64)),
    "full quadratic": ({"nld_mode": "quadratic"}, Decoding("quadratic", 32, groups=32)),
    "full quadratic of short blocks": (
        {"nld_mode": "quadratic", "nld_block_length": 8},
        Decoding("quadratic", 8, groups=8),
    ),
    "sparse quadratic": ({"nld_mode": "quadratic", "nld_groups": 3}, Decoding("quadratic", 32, groups=3)),
    "diffusion": ({"nld_mode": "diffusion"}, Decoding("diffusion", 32, 0.9)),
    "all of diffusion": (
        {"nld_mode": "diffusion", "nld_threshold": 0, "nld_block_length": 8, "nld_max_denoise_steps": 31},
        Decoding("diffusion", 8, 0.0, 31),
    ),
    "SGLang's ar": ({"ar_mode": True}, Decoding("ar")),
    "SGLang's diffusion": (
        {"diffusion_mode": "fast_diffuser", "confidence_threshold": 0.5, "block_size": 4, "max_denoising_steps": 2},
        Decoding("diffusion", 4, 0.5, 2),
    ),
    "SGLang's speculation": (
        {"ar_mode": False, "diffusion_mode": "linear_spec", "confidence_threshold": 0.5},
        Decoding("linear", 32, 0.5),
    ),
}


def test_a_server_without_auto_uses_its_own_mode_instead() -> None:
    without = replace(SERVED, modes=("ar", "linear"))
    assert without.read({"nld_mode": "auto"}) == without.default == Decoding("linear", 32)
    assert without.read({"nld_mode": "auto", "nld_block_length": 8}) == Decoding("linear", 8)


@pytest.mark.parametrize(("extra", "decoding"), GOOD.values(), ids=GOOD)
def test_valid_parameters(extra: dict[str, Any] | None, decoding: Decoding) -> None:
    assert SERVED.read(extra) == decoding


TREE_DEFAULTS: dict[str, tuple[ServerModes, dict[str, Any], Decoding]] = {
    "the server's tree": (TREES, {}, Decoding("linear", 32, tree_nodes=16)),
    "a chain": (TREES, {"nld_tree_nodes": 0}, Decoding("linear", 32)),
    "another mode": (TREES, {"nld_mode": "diffusion"}, Decoding("diffusion", 32, 0.9)),
    "a threshold": (TREES, {"nld_draft_threshold": 0.5}, Decoding("linear", 32, 0.5)),
    "the server's groups": (SPARSE, {"nld_mode": "quadratic"}, Decoding("quadratic", 32, groups=4)),
    "AR's verifier": (
        SPARSE,
        {"nld_mode": "quadratic", "nld_verifier_mix": 1.0},
        Decoding("quadratic", 32, groups=4),
    ),
    "fewer groups": (SPARSE, {"nld_mode": "quadratic", "nld_groups": 1}, Decoding("quadratic", 32, groups=1)),
    "no more groups than tokens": (
        SPARSE,
        {"nld_mode": "quadratic", "nld_block_length": 3},
        Decoding("quadratic", 3, groups=3),
    ),
    "a tree on a server with a threshold": (
        replace(SERVED, draft_threshold=0.5),
        {"nld_tree_nodes": 8},
        Decoding("linear", 32, tree_nodes=8),
    ),
}


@pytest.mark.parametrize(("served", "extra", "decoding"), TREE_DEFAULTS.values(), ids=TREE_DEFAULTS)
def test_a_field_goes_before_the_servers_default(
    served: ServerModes, extra: dict[str, Any], decoding: Decoding
) -> None:
    assert served.read(extra) == decoding


PATH_DEPENDENT: dict[str, dict[str, Any]] = {
    "grammar": {"structured_outputs": StructuredOutputsParams(choice=["a"])},
    "presence penalty": {"presence_penalty": 0.1},
    "frequency penalty": {"frequency_penalty": -0.1},
    "repetition penalty": {"repetition_penalty": 1.1},
    "bad words": {"bad_words": ["x"]},
    "thinking budget": {"thinking_token_budget": 0},
}


@pytest.mark.parametrize("params", PATH_DEPENDENT.values(), ids=PATH_DEPENDENT)
def test_sampling_that_depends_on_the_path_uses_the_chain(params: dict[str, Any]) -> None:
    tree, chain = Decoding("linear", 8, tree_nodes=20), Decoding("linear", 8)
    record = {"nld": tree.record()}
    assert Decoding.of(SamplingParams(extra_args=record, **params)) == chain
    assert Decoding.of(SamplingParams(extra_args=record, min_tokens=3, top_k=5, seed=7, logprobs=2)) == tree


@pytest.mark.parametrize("name", PATH_DEPENDENT)
def test_a_grammar_has_to_see_all_drafts(name: str) -> None:
    """And masks are none. Everything else works on the verified rows, which are a chain."""
    grouped = Decoding("quadratic", 8, groups=3)
    found = Decoding.of(SamplingParams(extra_args={"nld": grouped.record()}, **PATH_DEPENDENT[name]))
    assert found == (replace(grouped, groups=0) if name == "grammar" else grouped)


@pytest.mark.parametrize(
    ("decoding", "limit", "tokens"),
    [
        (Decoding("linear", 8), 100, 7),
        (Decoding("linear", 8), 3, 3),
        (Decoding("linear", 8, tree_nodes=20), 100, 20),
        (Decoding("linear", 8, tree_nodes=20), 12, 12),
        (Decoding("quadratic", 8, groups=2), 100, 7 + 16),
        (Decoding("quadratic", 8, groups=2), 22, 7 + 8),
        (Decoding("quadratic", 8, groups=2), 14, 7),
        (Decoding("quadratic", 8, groups=2), 4, 4),
        (Decoding("quadratic", 8), 100, 7),
        (Decoding("quadratic", 8, groups=8), 71, 71),
    ],
    ids=str,
)
def test_draft_tokens_of_a_step(decoding: Decoding, limit: int, tokens: int) -> None:
    """Groups are whole or left out, so none takes rows for nothing."""
    assert decoding.scheduled(limit) == tokens


@settings(max_examples=scaled(2000), deadline=None)
@given(bad_parameters())
def test_invalid_parameters_are_named(case: tuple[dict[str, Any], str]) -> None:
    extra, field = case
    with pytest.raises(ValueError) as error:
        SERVED.read(extra)
    assert field in str(error.value)


REFUSED: dict[str, tuple[ServerModes, dict[str, Any], str]] = {
    "unknown name": (SERVED, {"nld_treshold": 0.5}, "vllm_xargs.nld_treshold is unknown; known are nld_mode"),
    "field of another mode": (
        SERVED,
        {"nld_mode": "ar", "nld_block_length": 8},
        "nld_block_length has no use in mode 'ar', only in",
    ),
    "a threshold beyond floats": (
        SERVED,
        {"nld_mode": "diffusion", "nld_threshold": 10**400},
        "nld_threshold must lie in [0, 1], not 1000",
    ),
    "no number": (SERVED, {"nld_mode": "diffusion", "nld_threshold": float("nan")}, "nld_threshold must lie in"),
    "field without a mode": (SERVED, {"nld_threshold": 0.5}, "nld_threshold has no use in mode 'linear'"),
    "longer block than the server's": (
        SERVED,
        {"nld_block_length": 33},
        "nld_block_length must lie in [2, 32], not 33",
    ),
    "bool": (SERVED, {"nld_block_length": True}, "must be an integer in [2, 32], not True"),
    "more nodes than the server's": (SERVED, {"nld_tree_nodes": 5000}, "nld_tree_nodes must lie in [0, 64], not 5000"),
    "a tree in several passes": (
        SERVED,
        {"nld_tree_nodes": 8, "nld_draft_threshold": 0.5},
        "nld_tree_nodes 8 contradicts nld_draft_threshold 0.5",
    ),
    "a tree of another mode": (SERVED, {"nld_mode": "diffusion", "nld_tree_nodes": 8}, "no use in mode 'diffusion'"),
    "a tree where it is not possible": (
        replace(SERVED, no_trees="its CUDA graphs know no masks"),
        {"nld_tree_nodes": 8},
        "nld_tree_nodes must be 0, not 8, on this server: its CUDA graphs know no masks",
    ),
    "a verifier that is not AR's": (
        SPARSE,
        {"nld_mode": "quadratic", "nld_verifier_mix": 0.5},
        "nld_verifier_mix must be 1, not 0.5: the AR pathway alone verifies drafts",
    ),
    "a verifier of another mode": (SPARSE, {"nld_verifier_mix": 1}, "nld_verifier_mix has no use in mode 'linear'"),
    "groups below 0": (SPARSE, {"nld_mode": "quadratic", "nld_groups": -1}, "nld_groups must lie in [1, 4], not -1"),
    "groups as text": (
        SPARSE,
        {"nld_mode": "quadratic", "nld_groups": "x"},
        "nld_groups must be an integer in [1, 4], not 'x'",
    ),
    "more groups than the server's": (
        SPARSE,
        {"nld_mode": "quadratic", "nld_groups": 5},
        "nld_groups must lie in [1, 4], not 5",
    ),
    "more groups than tokens": (
        SPARSE,
        {"nld_mode": "quadratic", "nld_groups": 4, "nld_block_length": 3},
        "nld_groups must lie in [1, 3], not 4",
    ),
    "groups of another mode": (SPARSE, {"nld_groups": 2}, "nld_groups has no use in mode 'linear', only in quadratic"),
    "groups where none are": (
        ServerModes("linear", ("ar", "linear"), 32),
        {"nld_mode": "quadratic"},
        "nld_mode 'quadratic' is not served here, only ar, linear: its masks need room that --additional-config "
        "nld.groups reserves",
    ),
    "own and SGLang's names": (SERVED, {"nld_mode": "ar", "ar_mode": True}, "mixes nld_mode with ar_mode"),
    "contradiction": (SERVED, {"ar_mode": True, "diffusion_mode": "linear_spec"}, "contradict each other"),
    "mode that is not served": (ServerModes("ar", ("ar",)), {"nld_mode": "linear"}, "not served here, only ar"),
    "another drafter": (ServerModes("ar", ()), {"nld_mode": "ar"}, "the server speculates with another drafter"),
    "more passes than the server's": (
        ServerModes("diffusion", ("diffusion",), 32, max_denoise_steps=4),
        {"nld_max_denoise_steps": 5},
        "nld_max_denoise_steps must lie in [1, 4], not 5",
    ),
    "threshold with sampled drafts": (
        ServerModes("linear", ("linear",), 32, probabilistic=True),
        {"nld_draft_threshold": 0.5},
        "must be 0, not 0.5: the server keeps draft logits",
    ),
}


@pytest.mark.parametrize(("served", "extra", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(served: ServerModes, extra: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        served.read(extra)
    assert message in str(error.value)
