"""What is compared: a mode with its settings, and, if there are several, the server that it is asked of.

variant = Variant.parse("diffusion,threshold=0.7")
variant.name                    # "diffusion, threshold 0.7"
variant.body                    # {"vllm_xargs": {"nld_mode": "diffusion", "nld_threshold": 0.7}}
variant.settings                # {"mode": "diffusion", "threshold": 0.7}, for --additional-config
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from vllm_nld.serving.modes import MODES

PREFIX = "nld_"
BASELINE = "ar"
DEFAULT = "default"  # whatever the server does by itself, also for servers without this plugin


@dataclass(frozen=True, slots=True)
class Variant:
    """A mode (None: the server's default) and the request fields that it sets, without their prefix."""

    mode: str | None
    fields: Mapping[str, int | float] = field(default_factory=dict)
    label: str | None = None
    url: str | None = None  # None: the only server of the run
    model: str | None = None  # its name there

    def __post_init__(self) -> None:
        if self.mode is None and self.fields:
            raise ValueError(f"{DEFAULT!r} takes no fields: name a mode to set {next(iter(self.fields))}")
        if self.mode is not None and self.mode not in MODES:
            raise ValueError(f"unknown mode {self.mode!r}: use {', '.join(MODES)} or {DEFAULT!r}")
        known = MODES[self.mode].fields if self.mode is not None else ()
        for name in self.fields:
            if PREFIX + name not in known:
                possible = ", ".join(field.removeprefix(PREFIX) for field in known) or "none"
                raise ValueError(f"mode {self.mode!r} has no field {name!r}: possible are {possible}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """From MODE or MODE,FIELD=VALUE,… Raises ValueError for an unknown mode or field, or a value that is none."""
        mode, *pairs = text.split(",")
        fields = {}
        for pair in pairs:
            name, _, value = pair.strip().partition("=")
            try:
                fields[name.removeprefix(PREFIX)] = json.loads(value)
            except json.JSONDecodeError:
                raise ValueError(f"{text!r}: write {name}=NUMBER, not {pair.strip()!r}") from None
        return cls(None if mode == DEFAULT else mode, fields)

    @property
    def name(self) -> str:
        if self.label is not None:
            return self.label
        return ", ".join(
            [self.mode or DEFAULT, *(f"{name.replace('_', ' ')} {value:g}" for name, value in self.fields.items())]
        )

    @property
    def body(self) -> dict[str, Any]:
        """Fields that a request has besides its own."""
        if self.mode is None:
            return {}
        return {"vllm_xargs": {"nld_mode": self.mode} | {PREFIX + name: value for name, value in self.fields.items()}}

    @property
    def settings(self) -> dict[str, Any]:
        """The server's settings that make this its default."""
        return {"mode": self.mode, **self.fields}

    @property
    def config(self) -> str:
        """The flag that makes this a server's default."""
        return f"--additional-config '{json.dumps({'nld': self.settings})}'"

    @property
    def lossless(self) -> bool:
        """Whether the output is AR's by construction."""
        return self.mode is not None and not MODES[self.mode].takes_blocks


def unique(variants: list[Variant]) -> list[Variant]:
    """Without repetitions, by name."""
    return list({variant.name: variant for variant in variants}.values())
