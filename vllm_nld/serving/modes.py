"""How one request decodes: one typed, frozen description, read from the request and checked before it is scheduled.

    served = Served.of(vllm_config)                                   # what the server offers, and its defaults
    served.read({"nld_mode": "diffusion", "nld_threshold": 0.8})      # Decoding, or ValueError naming field and range

Over HTTP the fields are in `vllm_xargs`, offline in `SamplingParams.extra_args`. Names that do not begin with `nld_`
and are not SGLang's are someone else's and left alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from vllm_nld.serving.settings import MODES, Settings

WHERE = "vllm_xargs"
AUTO = "auto"

# The modes that have a use for a field.
FIELDS: dict[str, tuple[str, ...]] = {
    "nld_mode": MODES,
    "nld_threshold": ("diffusion",),
    "nld_block_length": ("linear", "diffusion"),
    "nld_max_denoise_steps": ("diffusion",),
    "nld_draft_threshold": ("linear",),
}

# SGLang's names; its `ar_mode` is a switch beside them, and its confidence threshold belongs to either drafting mode.
SGLANG = {
    "block_size": "nld_block_length",
    "confidence_threshold": "nld_threshold",
    "max_denoising_steps": "nld_max_denoise_steps",
}
SGLANG_MODES = {"fast_diffuser": "diffusion", "linear_spec": "linear"}
SGLANG_NAMES = ("ar_mode", "diffusion_mode", *SGLANG)


@dataclass(frozen=True, slots=True)
class Decoding:
    """A request's mode and the parameters of its passes.

    block_length: the last token and its drafts; 1 in mode "ar", which drafts nothing.
    threshold: probability from which a pass commits a position; below it, only the surest one.
    max_denoise_steps: passes a block at most; the last one commits whatever is left. None: until nothing is left.
    """

    mode: str
    block_length: int = 1
    threshold: float = 0.0
    max_denoise_steps: int | None = None

    def __post_init__(self) -> None:
        if (self.mode == "ar") != (self.block_length == 1):
            raise ValueError(f"mode {self.mode!r} and block_length {self.block_length} contradict each other")

    @property
    def drafts(self) -> int:
        """Tokens drafted a step."""
        return self.block_length - 1

    @property
    def passes(self) -> int:
        """Draft passes a block at most; a threshold of 0 commits everything in the first."""
        return 1 if self.threshold == 0 else min(self.max_denoise_steps or self.drafts, self.drafts)


@dataclass(frozen=True, slots=True)
class Served:
    """What a server offers: its default mode, the modes a request may choose, the longest block, default thresholds.

    modes is empty where the server speculates with a drafter of another kind: requests then cannot choose.
    probabilistic: the server keeps draft logits, which follow one pass only.
    """

    mode: str
    modes: tuple[str, ...]
    block_length: int = 1
    threshold: float = 0.9
    draft_threshold: float = 0.0
    max_denoise_steps: int | None = None
    probabilistic: bool = False

    @classmethod
    def of(cls, vllm_config: Any) -> Self:
        """What a configured server offers."""
        from vllm_nld.serving.speculation import drafts_for_itself

        settings, speculative = Settings.of(vllm_config), vllm_config.speculative_config
        if speculative is None:
            return cls("ar", ("ar",))
        if not drafts_for_itself(vllm_config):
            return cls("ar", ())
        return cls(
            settings.mode or "linear",
            settings.modes,
            speculative.num_speculative_tokens + 1,
            settings.threshold,
            settings.draft_threshold,
            settings.max_denoise_steps,
            speculative.draft_sample_method == "probabilistic",
        )

    @property
    def default(self) -> Decoding:
        """How a request decodes that says nothing."""
        return self.decoding({})

    def read(self, extra: Mapping[str, Any] | None) -> Decoding:
        """A request's decoding. Raises ValueError that names field, value and range."""
        asked = own_names(extra or {})
        if not asked or asked == {"nld_mode": AUTO}:
            return self.default
        if not self.modes:
            raise ValueError(
                f"{WHERE}.{next(iter(asked))} is not possible here: the server speculates with another drafter, "
                "chosen by its --speculative-config"
            )
        mode = asked.get("nld_mode", AUTO)
        if not isinstance(mode, str) or mode not in (AUTO, *MODES):
            raise ValueError(f"{WHERE}.nld_mode must be one of {', '.join((AUTO, *MODES))}, not {mode!r}")
        mode = self.mode if mode == AUTO else mode
        if mode not in self.modes:
            raise ValueError(f"{WHERE}.nld_mode {mode!r} is not served here, only {', '.join(self.modes)}")
        for name in asked:
            if mode not in FIELDS[name]:
                raise ValueError(
                    f"{WHERE}.{name} has no use in mode {mode!r}, only in {' and '.join(FIELDS[name])}: "
                    "remove it, or set nld_mode"
                )
        return self.decoding(asked | {"nld_mode": mode})

    def decoding(self, asked: Mapping[str, Any]) -> Decoding:
        """The fields that are there, checked, over the server's defaults."""
        mode = asked.get("nld_mode", self.mode)
        if mode == "ar":
            return Decoding("ar")
        block_length = whole(asked, "nld_block_length", self.block_length, 2, self.block_length)
        if mode == "linear":
            threshold = number(asked, "nld_draft_threshold", self.draft_threshold)
            if threshold and self.probabilistic:
                raise ValueError(
                    f"{WHERE}.nld_draft_threshold must be 0, not {threshold}: the server keeps draft logits, which "
                    "follow one pass only"
                )
            return Decoding("linear", block_length, threshold)
        steps = self.max_denoise_steps
        if "nld_max_denoise_steps" in asked:
            steps = whole(asked, "nld_max_denoise_steps", 1, 1, steps or self.block_length - 1)
        return Decoding("diffusion", block_length, number(asked, "nld_threshold", self.threshold), steps)


def own_names(extra: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are ours, SGLang's names translated. Raises ValueError for an unknown one or a mixture."""
    own = {name: value for name, value in extra.items() if name.startswith("nld_")}
    for name in own:
        if name not in FIELDS:
            raise ValueError(f"{WHERE}.{name} is unknown; known are {', '.join(FIELDS)}")
    theirs = {name: value for name, value in extra.items() if name in SGLANG_NAMES}
    if own and theirs:
        raise ValueError(f"{WHERE} mixes {next(iter(own))} with {next(iter(theirs))}: use the nld_ names alone")
    return own or translate(theirs)


def translate(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """SGLang's names as ours."""
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
    return fields if mode is None else {"nld_mode": mode} | fields


def whole(asked: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    """An integer field in [least, most]; an integral float will not do, and a bool is no integer."""
    value = asked.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{WHERE}.{name} must be an integer in [{least}, {most}], not {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{WHERE}.{name} must lie in [{least}, {most}], not {value}")
    return value


def number(asked: Mapping[str, Any], name: str, default: float) -> float:
    """A number in [0, 1]."""
    value = asked.get(name, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{WHERE}.{name} must be a number in [0, 1], not {value!r}")
    if not math.isfinite(value) or not 0 <= value <= 1:
        raise ValueError(f"{WHERE}.{name} must lie in [0, 1], not {value}")
    return float(value)


def with_alias(model: str | None, extra: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A request's extra arguments with the mode that its model name ends in: `nld:ar` asks for mode "ar"."""
    mode = (model or "").rpartition(":")[2]
    if mode not in MODES or mode == model:
        return dict(extra) if extra else None
    asked = (extra or {}).get("nld_mode", mode)
    if asked not in (mode, AUTO):
        raise ValueError(f"{WHERE}.nld_mode {asked!r} contradicts the model name {model!r}: remove it, or name another")
    return dict(extra or {}) | {"nld_mode": mode}


def check_combination(decoding: Decoding, params: Any) -> None:
    """Raise ValueError for sampling parameters that diffusion cannot honour: denoised tokens are taken as they are."""
    if decoding.mode != "diffusion":
        return
    neutral = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
    for name, value in neutral.items():
        if getattr(params, name) != value:
            raise ValueError(
                f"{name} has no effect on denoised tokens: leave it at {value}, or use nld_mode 'linear' or 'ar'"
            )
