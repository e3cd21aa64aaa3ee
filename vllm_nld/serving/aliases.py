"""Alternatives to the `nld_*` fields: SGLang's field names, and model names that end in a mode."""

import json
from collections.abc import Mapping
from typing import Any

from vllm_nld.serving.decoding import RECORD
from vllm_nld.serving.modes import AUTO, CONSTANTS, FIELDS, MODES

WHERE = "vllm_xargs"
MODE = "nld_mode"
KNOWN = (MODE, *FIELDS, *CONSTANTS)

# In SGLang `ar_mode` is a separate boolean, and its confidence threshold applies to both drafting modes.
SGLANG = {
    "block_size": "nld_block_length",
    "confidence_threshold": "nld_threshold",
    "max_denoising_steps": "nld_max_denoise_steps",
}
SGLANG_MODES = {"fast_diffuser": "diffusion", "linear_spec": "linear"}
SGLANG_NAMES = ("ar_mode", "diffusion_mode", *SGLANG)


def is_own(name: str) -> bool:
    """Whether an extra argument is one of our fields or of SGLang's."""
    return name.startswith("nld_") or name in SGLANG_NAMES


def check_place(others: Mapping[str, Any] | None) -> None:
    """Raise ValueError if a request has a field of ours beside `vllm_xargs`, where nobody would read it."""
    for name, value in (others or {}).items():
        if name.startswith("nld_"):
            raise ValueError(f'{name} has no effect there: send it as {{"{WHERE}": {{"{name}": {json.dumps(value)}}}}}')


def own_fields(extra: Mapping[str, Any]) -> dict[str, Any]:
    """The `nld_*` fields of a request, with SGLang's names translated. All other names are ignored.

    Raises ValueError for an unknown `nld_*` name, or if a request uses both kinds of names.
    """
    own = {name: value for name, value in extra.items() if name.startswith("nld_")}
    for name in own:
        if name not in KNOWN:
            raise ValueError(f"{WHERE}.{name} is unknown; known are {', '.join(KNOWN)}")
    theirs = {name: value for name, value in extra.items() if name in SGLANG_NAMES}
    if own and theirs:
        raise ValueError(f"{WHERE} mixes {next(iter(own))} with {next(iter(theirs))}: use the nld_ names only")
    return own or translate(theirs)


def translate(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """SGLang's fields as ours. Raises ValueError for a bad value."""
    switch, kind = theirs.get("ar_mode", False), theirs.get("diffusion_mode")
    if not isinstance(switch, bool):
        raise ValueError(f"{WHERE}.ar_mode must be true or false, not {switch!r}")
    if kind is not None and (not isinstance(kind, str) or kind not in SGLANG_MODES):
        raise ValueError(f"{WHERE}.diffusion_mode must be one of {', '.join(SGLANG_MODES)}, not {kind!r}")
    if switch and kind is not None:
        raise ValueError(f"{WHERE}.ar_mode and diffusion_mode {kind!r} contradict each other: remove one")
    fields = {ours: theirs[name] for name, ours in SGLANG.items() if name in theirs}
    if kind == "linear_spec" and "nld_threshold" in fields:
        fields["nld_draft_threshold"] = fields.pop("nld_threshold")
    mode = "ar" if switch else SGLANG_MODES.get(kind) if isinstance(kind, str) else None
    return fields if mode is None else {MODE: mode} | fields


def with_alias(model: str | None, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """Adds the mode that the model name ends in to a request's extra arguments: `nld:ar` asks for mode "ar"."""
    mode = (model or "").rpartition(":")[2]
    if mode not in MODES or mode == model or RECORD in (extra or {}):  # a record has been made with the name
        return dict(extra or {})
    asked = (extra or {}).get(MODE, mode)
    if asked not in (mode, AUTO):
        raise ValueError(f"{WHERE}.nld_mode {asked!r} contradicts the model name {model!r}: remove it, or name another")
    return dict(extra or {}) | {MODE: mode}
