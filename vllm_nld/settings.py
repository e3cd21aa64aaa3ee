"""What `--additional-config '{"nld": {...}}'` may say: one typed, frozen record, checked at start-up.

    settings = Settings.parse({"mode": "linear", "block_length": 16})

Every error is a ValueError that names the field as the user wrote it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

MODES = ("ar", "linear")
FIELD = "--additional-config nld"


@dataclass(frozen=True, slots=True)
class Settings:
    """The server's decoding mode.

    mode: "ar" decodes a token at a time, "linear" drafts a block and verifies it; None: linear, unless
        --speculative-config asks for another drafter.
    block_length: the last token and its drafts, at least 2; None: the checkpoint's block_size.
    draft_threshold: 0 drafts in one pass; above, a pass keeps the drafts at least this probable and the next pass
        redoes the others.
    draft_lora: "auto" takes the checkpoint's own draft adapter if it has one, "off" none; else the adapter's folder.
    """

    mode: str | None = None
    block_length: int | None = None
    draft_threshold: float = 0.0
    draft_lora: str = "auto"

    def __post_init__(self) -> None:
        if self.mode not in (None, *MODES):
            raise ValueError(f"{FIELD}.mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        if self.block_length is not None:
            if not isinstance(self.block_length, int) or isinstance(self.block_length, bool):
                raise ValueError(f"{FIELD}.block_length must be an integer, not {self.block_length!r}")
            if self.block_length < 2:
                raise ValueError(f"{FIELD}.block_length must be at least 2, not {self.block_length}")
        if not isinstance(self.draft_threshold, (int, float)) or isinstance(self.draft_threshold, bool):
            raise ValueError(f"{FIELD}.draft_threshold must be a number, not {self.draft_threshold!r}")
        if not 0 <= self.draft_threshold <= 1:
            raise ValueError(f"{FIELD}.draft_threshold must lie in [0, 1], not {self.draft_threshold}")
        if not isinstance(self.draft_lora, str) or not self.draft_lora:
            raise ValueError(f"{FIELD}.draft_lora must be 'auto', 'off' or a folder, not {self.draft_lora!r}")

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
        others = [name for name in raw if name != "mode"]
        if settings.mode == "ar" and others:
            raise ValueError(f"{FIELD}.{others[0]} has no use in mode 'ar': remove it, or set mode to 'linear'")
        return settings

    @classmethod
    def of(cls, vllm_config: Any) -> Self:
        """The settings that a VllmConfig carries."""
        additional = vllm_config.additional_config
        return cls.parse(additional.get("nld") if isinstance(additional, Mapping) else None)
