"""How one request decodes: a frozen record, parsed once when the request arrives, that travels with it.

extra_args["nld"] = decoding.record()           # the edge, see `serving.requests`
Decoding.of(sampling_params)                    # scheduler, worker and metrics; None: the request has no record
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from vllm_nld.serving.modes import MODES, Mode

RECORD = "nld"  # the key of `SamplingParams.extra_args` that holds the record


@dataclass(frozen=True, slots=True)
class Decoding:
    """A request's mode and the parameters of its draft passes.

    block_length: the last accepted token and its drafts, an upper bound for each step; 1 in modes that do not draft.
    threshold: a pass commits candidates that are at least this probable, and always the most probable one.
    max_steps: at most this many passes per block, the last of which commits the rest; None: no limit.
    """

    mode: str
    block_length: int = 1
    threshold: float = 0.0
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        if self.policy.drafts == (self.block_length == 1):
            raise ValueError(f"mode {self.mode!r} and block_length {self.block_length} contradict each other")

    @property
    def policy(self) -> Mode:
        """The record of the mode."""
        return MODES[self.mode]

    @property
    def drafts(self) -> int:
        """At most this many tokens are drafted per step."""
        return self.block_length - 1

    @property
    def passes(self) -> int:
        """At most this many draft passes per block; a threshold of 0 commits everything in the first one."""
        return 1 if self.threshold == 0 else min(self.max_steps or self.drafts, self.drafts)

    def record(self) -> dict[str, Any]:
        """The record in plain types, as it travels between processes."""
        return asdict(self)

    @classmethod
    def of(cls, params: Any) -> Self | None:
        """The record that a request's sampling parameters carry; None if they carry none."""
        return cls.load(getattr(params, "extra_args", None))

    @classmethod
    def load(cls, extra: Mapping[str, Any] | None) -> Self | None:
        """The record among a request's extra arguments; None if there is none."""
        record = extra.get(RECORD) if extra else None
        return cls(**record) if isinstance(record, Mapping) else None
