"""Generates invalid decoding parameters, each with the field that the error message must name."""

from typing import Any

from hypothesis import strategies as st

NUMBERS_OUTSIDE = st.one_of(
    st.floats(max_value=0, exclude_max=True, allow_infinity=False),
    st.floats(min_value=1, exclude_min=True, allow_infinity=False),
)
NO_NUMBERS = st.one_of(st.booleans(), st.text(max_size=8), st.lists(st.integers(0, 9), max_size=3), st.none())
NO_WHOLE_NUMBERS = st.one_of(NO_NUMBERS, st.floats(allow_nan=False, allow_infinity=False))
NO_SHARES = st.one_of(NO_NUMBERS, NUMBERS_OUTSIDE)
MIXTURES = st.floats(allow_nan=False, allow_infinity=False).filter(lambda weight: weight != 1)
BIG = 2**62
NO_MODES = st.one_of(
    st.text(max_size=12), st.integers(-5, 5), st.booleans(), st.lists(st.text(max_size=3), max_size=2)
).filter(lambda mode: mode not in ("ar", "linear", "quadratic", "diffusion", "auto"))


def outside(least: int, most: int) -> st.SearchStrategy[int]:
    return st.one_of(st.integers(-BIG, least - 1), st.integers(most + 1, BIG))


# for each field, a mode that has it, and invalid values
BAD_VALUES: dict[str, tuple[dict[str, Any], st.SearchStrategy[Any]]] = {
    "nld_mode": ({}, NO_MODES),
    "nld_threshold": ({"nld_mode": "diffusion"}, NO_SHARES),
    "nld_draft_threshold": ({"nld_mode": "linear"}, NO_SHARES),
    "nld_block_length": ({"nld_mode": "linear"}, st.one_of(NO_WHOLE_NUMBERS, outside(2, 32))),
    "nld_tree_nodes": ({"nld_mode": "linear"}, st.one_of(NO_WHOLE_NUMBERS, outside(0, 512))),
    "nld_groups": ({"nld_mode": "quadratic"}, st.one_of(NO_WHOLE_NUMBERS, outside(1, 32))),
    "nld_verifier_mix": ({"nld_mode": "quadratic"}, NO_NUMBERS | MIXTURES),
    "nld_max_denoise_steps": ({"nld_mode": "diffusion"}, st.one_of(NO_WHOLE_NUMBERS, outside(1, 31))),
    "diffusion_mode": ({}, NO_MODES.filter(lambda mode: mode is not None)),
    "ar_mode": (
        {},
        st.one_of(st.text(max_size=5), st.integers(-3, 3), st.floats(allow_nan=False, allow_infinity=False)),
    ),
}
GOOD_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "nld_threshold": st.floats(0, 1),
    "nld_block_length": st.integers(2, 32),
    "nld_max_denoise_steps": st.integers(1, 31),
    "nld_tree_nodes": st.integers(0, 31),
    "nld_groups": st.integers(1, 32),
}


@st.composite
def bad_parameters(draw: st.DrawFn) -> tuple[dict[str, Any], str]:
    """One field has an invalid value or name, does not belong to the mode, or mixes our names with SGLang's."""
    kind = draw(st.sampled_from(("value", "name", "place", "mixture")))
    if kind == "value":
        field = draw(st.sampled_from(sorted(BAD_VALUES)))
        mode, values = BAD_VALUES[field]
        return mode | {field: draw(values)}, field
    if kind == "name":
        field = "nld_" + draw(st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=10))
        if field in BAD_VALUES:
            field += "x"
        return {"nld_mode": draw(st.sampled_from(("ar", "linear", "diffusion"))), field: draw(NO_NUMBERS)}, field
    if kind == "place":
        field = draw(st.sampled_from(sorted(GOOD_VALUES)))
        return {"nld_mode": "ar", field: draw(GOOD_VALUES[field])}, field
    field = draw(st.sampled_from(sorted(GOOD_VALUES)))
    return {field: draw(GOOD_VALUES[field]), "confidence_threshold": 0.5}, field
