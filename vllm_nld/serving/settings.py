"""The server's settings, `--additional-config '{"nld": {...}}'`: a typed, frozen record, checked at start-up.

    settings = Settings.parse({"mode": "linear", "block_length": 16})

Every error is a ValueError that names the field as the user wrote it.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from vllm_nld.serving.modes import DEFAULT, MODES

FIELD = "--additional-config nld"
MOST_NODES = 512  # of a draft tree; beyond a few hundred nodes hardly any is accepted
MASK_KERNELS = ("auto", "triton", "xformers")


@dataclass(frozen=True, slots=True)
class Settings:
    """The modes that the server offers, and defaults for requests that don't set a field.

    mode: the mode of requests that don't choose one, see `serving.modes`; None: auto, unless --speculative-config
        asks for another drafter.
    allowed_modes: the modes that requests may choose; None: all but "quadratic", or only "ar" if that is the server's
        mode.
    block_length: the last accepted token and its drafts, at least 2; None: the checkpoint's block_size. An upper bound
        for requests.
    threshold: in diffusion mode, a pass commits the tokens that are at least this probable.
    max_denoise_steps: in diffusion mode, at most this many passes per block; None: no limit.
    draft_threshold: in linear mode, 0 drafts in one pass; above 0, a pass keeps drafts that are at least this probable.
    tree_nodes: in linear mode, verify a draft tree of this many nodes; 0: the chain of the block's drafts. In auto
        mode, trees of at most this many.
    groups: in quadratic mode, groups of masks for this many numbers of accepted drafts; None: for each. Quadratic mode
        is offered if this is set, or if mode or allowed_modes names it.
    verifier_mix: the AR pathway's weight in the verifier's distribution. Only 1 is served: with less, the diffusion
        pathway would have a say in what is accepted, and the output would be lossy.
    min_acceptance_length: in auto mode, blocks that are expected to yield fewer tokens per round are not drafted, so
        requests decode as in ar instead; at least 1.
    expected_acceptance_length: tokens per round that you expect of this model and traffic, at least 1. It changes
        /metrics only, where alerts compare with it; None: they compare with what the first day showed.
    draft_lora: "auto" for the checkpoint's own draft adapter if it has one, "off" for none, or an adapter's folder, or
        another checkpoint, as a folder or a repository, for its adapter. Its shape must fit.
    mask_kernel: the kernel for attention masks among the rows of a step on a GPU: "triton", which is our own and what
        "auto" means, or "xformers" (pip install 'vllm-nld[xformers]').
    """

    mode: str | None = None
    allowed_modes: tuple[str, ...] | None = None
    block_length: int | None = None
    threshold: float = 0.9
    max_denoise_steps: int | None = None
    draft_threshold: float = 0.0
    tree_nodes: int = 0
    groups: int | None = None
    verifier_mix: float = 1
    min_acceptance_length: float = 1.0
    expected_acceptance_length: float | None = None
    draft_lora: str = "auto"
    mask_kernel: str = "auto"

    def __post_init__(self) -> None:
        if self.mode not in (None, *MODES):
            raise ValueError(f"{FIELD}.mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        self._check_allowed_modes()
        _check_integer("block_length", self.block_length, least=2)
        _check_integer("max_denoise_steps", self.max_denoise_steps, least=1)
        _check_fraction("threshold", self.threshold)
        _check_fraction("draft_threshold", self.draft_threshold)
        _check_integer("tree_nodes", self.tree_nodes, least=0, most=MOST_NODES)
        if self.tree_nodes and self.draft_threshold:
            raise ValueError(
                f"{FIELD}.tree_nodes {self.tree_nodes} contradicts draft_threshold {self.draft_threshold}: a tree is "
                "drafted in one pass, so set one of them to 0"
            )
        _check_integer("groups", self.groups, least=1)
        if self.groups is not None and not self.has_groups:
            raise ValueError(f"{FIELD}.groups {self.groups} has no use without mode 'quadratic' in allowed_modes")
        if self.groups is not None and self.block_length is not None and self.groups > self.block_length:
            raise ValueError(
                f"{FIELD}.groups must be at most block_length {self.block_length}, a group for each number of accepted "
                f"drafts, not {self.groups}"
            )
        check_verifier(f"{FIELD}.verifier_mix", self.verifier_mix)
        _check_length("min_acceptance_length", self.min_acceptance_length)
        if self.expected_acceptance_length is not None:
            _check_length("expected_acceptance_length", self.expected_acceptance_length)
        if not isinstance(self.draft_lora, str) or not self.draft_lora:
            raise ValueError(
                f"{FIELD}.draft_lora must be 'auto', 'off', a folder or a repository, not {self.draft_lora!r}"
            )
        if self.mask_kernel not in MASK_KERNELS:
            raise ValueError(f"{FIELD}.mask_kernel must be one of {', '.join(MASK_KERNELS)}, not {self.mask_kernel!r}")

    def _check_allowed_modes(self) -> None:
        allowed = self.allowed_modes
        if allowed is None:
            return
        if not isinstance(allowed, (list, tuple)) or not allowed or any(mode not in MODES for mode in allowed):
            raise ValueError(f"{FIELD}.allowed_modes must be a list of {', '.join(MODES)}, not {allowed!r}")
        if (self.mode or DEFAULT) not in allowed:
            raise ValueError(f"{FIELD}.allowed_modes {list(allowed)} leaves out the mode {self.mode or DEFAULT!r}")
        object.__setattr__(self, "allowed_modes", tuple(allowed))

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that requests may choose."""
        if self.allowed_modes is not None:
            return self.allowed_modes
        mode = MODES[self.mode or DEFAULT]
        if not mode.drafts:
            return (mode.name,)
        grouped = mode.grouped or self.groups is not None
        return tuple(name for name, other in MODES.items() if grouped or not other.grouped)

    @property
    def has_groups(self) -> bool:
        """Whether requests can have groups of masks."""
        return any(MODES[mode].grouped for mode in self.modes)

    @property
    def drafts(self) -> bool:
        """Whether requests can draft at all."""
        return any(MODES[mode].drafts for mode in self.modes)

    @classmethod
    def parse(cls, raw: Any) -> Self:
        """Settings from the `nld` object of --additional-config, or from None."""
        if raw is None:
            return cls()
        if not isinstance(raw, Mapping):
            raise ValueError(f"{FIELD} must be an object, not {raw!r}")
        known = [field.name for field in fields(cls)]
        for name in raw:
            if name not in known:
                raise ValueError(f"{FIELD}.{name} is unknown; known are {', '.join(known)}")
        settings = cls(**raw)
        others = [name for name in raw if name not in ("mode", "allowed_modes")]
        if not settings.drafts and others:
            raise ValueError(
                f"{FIELD}.{others[0]} has no use if only mode 'ar' is served: remove it, or set mode to 'linear'"
            )
        return settings

    @classmethod
    def of(cls, vllm_config: Any) -> Self:
        """The settings that a VllmConfig carries. Raises ValueError for a bad one, and if they seem misplaced."""
        additional = vllm_config.additional_config
        if not isinstance(additional, Mapping):
            return cls()
        if "nld" not in additional:
            for name, value in additional.items():  # anything else belongs to somebody else
                if name in cls.__slots__:
                    inside = json.dumps({"nld": {name: value}})
                    raise ValueError(f"--additional-config {name} has no effect outside of nld: use '{inside}'")
                if difflib.get_close_matches(str(name).lower(), ["nld"], cutoff=0.75):
                    raise ValueError(f"--additional-config {name} is unknown: did you mean nld?")
        return cls.parse(additional.get("nld"))


def check_verifier(name: str, value: Any) -> None:
    """Raise ValueError for a verifier that is not the AR pathway alone. `name`: the field, as the user wrote it."""
    if isinstance(value, bool) or value != 1:
        raise ValueError(
            f"{name} must be 1, not {value!r}: the AR pathway alone verifies drafts. Mixed with the diffusion pathway, "
            "decoding would be lossy: its output would not be AR's"
        )


def _check_integer(name: str, value: Any, least: int, most: int | None = None) -> None:
    if value is None and most is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{FIELD}.{name} must be an integer, not {value!r}")
    if value < least:
        raise ValueError(f"{FIELD}.{name} must be at least {least}, not {value}")
    if most is not None and value > most:
        raise ValueError(f"{FIELD}.{name} must be at most {most}, not {value}")


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{FIELD}.{name} must be a number, not {value!r}")


def _check_length(name: str, value: Any) -> None:
    _check_number(name, value)
    if not value >= 1:
        raise ValueError(f"{FIELD}.{name} must be at least 1, not {value}")


def _check_fraction(name: str, value: Any) -> None:
    _check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{FIELD}.{name} must lie in [0, 1], not {value}")
