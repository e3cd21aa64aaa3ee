"""How one request decodes: a frozen record, parsed once when the request arrives, that travels with it.

extra_args["nld"] = decoding.record()           # the edge, see `serving.requests`
Decoding.of(sampling_params)                    # scheduler, worker and metrics; None: the request has no record
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from vllm_nld.serving.modes import MODES, Mode

RECORD = "nld"  # the key of `SamplingParams.extra_args` that holds the record


@dataclass(frozen=True, slots=True)
class Decoding:
    """A request's mode and the parameters of its draft passes.

    block_length: the last accepted token and its drafts, an upper bound for each step; 1 in modes that do not draft.
    threshold: a pass commits candidates that are at least this probable, and always the most probable one.
    max_steps: at most this many passes per block, the last of which commits the rest; None: no limit.
    tree_nodes: a step verifies a draft tree of at most this many nodes; 0: the chain of the block's drafts.
    groups: in modes with groups of masks, at most this many per step, each of block_length masks; 0: none, so every
        block takes a draft pass.
    """

    mode: str
    block_length: int = 1
    threshold: float = 0.0
    max_steps: int | None = None
    tree_nodes: int = 0
    groups: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        if self.policy.drafts == (self.block_length == 1):
            raise ValueError(f"mode {self.mode!r} and block_length {self.block_length} contradict each other")
        if self.tree_nodes and (self.threshold or self.policy.takes_blocks):
            raise ValueError(f"tree_nodes {self.tree_nodes} needs a threshold of 0 and a mode that verifies")
        if not 0 <= self.groups <= self.block_length * self.policy.grouped:
            raise ValueError(
                f"groups {self.groups} needs a mode with groups, and a block of as many tokens, not {self.block_length}"
            )

    @property
    def policy(self) -> Mode:
        """The record of the mode."""
        return MODES[self.mode]

    @property
    def drafts(self) -> int:
        """At most this many positions are drafted per step."""
        return self.block_length - 1

    @property
    def nodes(self) -> int:
        """At most this many draft tokens are verified per step: a tree's nodes, or one for each drafted position."""
        return self.tree_nodes or self.drafts

    def scheduled(self, limit: int) -> int:
        """The draft tokens of a step, at most `limit`: a tree's nodes, or a chain and then whole groups of masks."""
        if not self.groups:
            return min(self.nodes, limit)
        groups = min(self.groups, (limit - self.drafts) // self.block_length)
        return grouped_tokens(self.block_length, groups) if groups > 0 else min(self.drafts, limit)

    @property
    def passes(self) -> int:
        """At most this many draft passes per block; a threshold of 0 commits everything in the first one."""
        return 1 if self.threshold == 0 else min(self.max_steps or self.drafts, self.drafts)

    def record(self) -> dict[str, Any]:
        """The record in plain types, as it travels between processes."""
        return asdict(self)

    @classmethod
    def of(cls, params: Any) -> Self | None:
        """How a request with these sampling parameters decodes; None if they carry no record.

        Sampling that depends on the path so far needs the chain: a tree's row has another history than its request. And
        a grammar has to see every draft token, which masks are not.
        """
        decoding = cls.load(getattr(params, "extra_args", None))
        if decoding is not None and decoding.tree_nodes and depends_on_path(params):
            return replace(decoding, tree_nodes=0)
        if decoding is not None and decoding.groups and params.structured_outputs is not None:
            return replace(decoding, groups=0)
        return decoding

    @classmethod
    def load(cls, extra: Mapping[str, Any] | None) -> Self | None:
        """The record among a request's extra arguments; None if there is none."""
        record = extra.get(RECORD) if extra else None
        return cls(**record) if isinstance(record, Mapping) else None


def grouped_tokens(block_length: int, groups: int) -> int:
    """The draft tokens of a step with groups of masks: the block's drafts, and block_length masks per group."""
    return block_length - 1 + groups * block_length


def depends_on_path(params: Any) -> bool:
    """Whether a row's distribution depends on tokens before it other than through the model.

    `min_tokens` is not among them: it depends on the row's position only.
    """
    return bool(
        params.structured_outputs is not None
        or params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty != 1.0
        or params.bad_words
        or params.thinking_token_budget is not None
    )
