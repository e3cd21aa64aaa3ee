"""The decoding modes, one frozen record each. All code that depends on a request's mode reads its record.

Every step of every request is draft -> target forward -> accept. A record says how to draft and how to accept:

    mode = MODES["diffusion"]
    mode.drafting.adapter     # False: the draft adapter is off in its passes
    mode.takes_blocks         # True: blocks are taken as drafted, and scheduled whole

A new mode is a new record. The scheduler, the worker, the sampler, the metrics and the doctor need no change unless the
mode brings a mechanism that no other mode has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

AUTO = "auto"  # on a server that does not offer it, a request that asks for it gets the server's mode
DEFAULT = AUTO

# Request fields, and the attribute of `Decoding` that each one sets. The default is the server's setting of the same
# name without the prefix.
FIELDS: dict[str, str] = {
    "nld_block_length": "block_length",
    "nld_threshold": "threshold",
    "nld_max_denoise_steps": "max_steps",
    "nld_draft_threshold": "threshold",
    "nld_tree_nodes": "tree_nodes",
    "nld_groups": "groups",
}

# Request fields whose only value is what every server does. They are known, so that a request that wants something else
# is told why not.
CONSTANTS = ("nld_verifier_mix",)

# Sampling parameters that shift the AR pathway's probabilities, of which drafts know nothing, and their neutral values.
SHIFTS: dict[str, Any] = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_p": 0.0,
    "logit_bias": None,
}


@dataclass(frozen=True, slots=True)
class Drafting:
    """How a mode fills a block by bidirectional passes.

    forward: the label `kind` of its passes in `nld:forwards_total`.
    adapter: whether the draft adapter is on.
    sampling: how candidates are drawn at a temperature. "draft": by temperature only, and only if the server keeps
        draft logits, because the verifier corrects for the rest. "final": by temperature, top-k and top-p, because
        nothing corrects them later.
    """

    forward: Literal["draft", "denoise"]
    adapter: bool
    sampling: Literal["draft", "final"]


@dataclass(frozen=True, slots=True)
class Mode:
    """One decoding mode.

    summary: one line for readers.
    fields: the request fields, besides nld_mode, that the mode uses.
    drafting: how blocks are filled; None if the mode does not draft and each forward yields one token.
    accept: "verify": vLLM's rejection sampler decides, so the output is lossless. "take": the block is taken as
        drafted. A taken block is scheduled whole or not at all, and no schedule of draft lengths shortens it,
        because the output would otherwise depend on the load.
    by_load: whether the scheduler chooses the block length in each step, for the load; a request's own is the limit.
    grouped: whether groups of masks in the verifying forward draft the next block. A server offers such a mode only if
        its settings ask for it, because room for the masks is reserved.
    counts_prefill: whether the reference counts the prefill as a forward (NFE).
    refused: sampling parameters that the mode does not support, with the only value that it accepts.
    """

    name: str
    summary: str
    fields: tuple[str, ...] = ()
    drafting: Drafting | None = None
    accept: Literal["verify", "take"] = "verify"
    by_load: bool = False
    grouped: bool = False
    counts_prefill: bool = True
    refused: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.fields if name not in (*FIELDS, *CONSTANTS)]:
            raise ValueError(f"mode {self.name!r} has unknown request fields: {', '.join(unknown)}")
        if self.drafting is None and (self.fields or self.accept == "take"):
            raise ValueError(f"mode {self.name!r} drafts nothing, so it has no fields and no blocks to take")
        if self.drafting is not None and (self.drafting.sampling == "final") != (self.accept == "take"):
            raise ValueError(f"mode {self.name!r}: drafts are final exactly if blocks are taken as drafted")
        if self.by_load and (self.drafting is None or self.takes_blocks):
            raise ValueError(f"mode {self.name!r}: only the length of verified blocks can depend on the load")
        if self.grouped and (self.drafting is None or self.takes_blocks or self.by_load):
            raise ValueError(f"mode {self.name!r}: groups of masks need verified blocks of a fixed length")

    @property
    def drafts(self) -> bool:
        """Whether the mode drafts at all."""
        return self.drafting is not None

    @property
    def takes_blocks(self) -> bool:
        """Whether blocks are taken as drafted, without verification."""
        return self.accept == "take"

    @property
    def forwards(self) -> tuple[str, ...]:
        """The kinds of forwards that `nld:forwards_total` counts."""
        return ("target",) if self.drafting is None else ("target", self.drafting.forward)


MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode(
            AUTO,
            "linear with the block length that is best for the load, or ar: the same output as ar",
            fields=("nld_block_length", "nld_tree_nodes"),
            drafting=Drafting("draft", adapter=True, sampling="draft"),
            by_load=True,
        ),
        Mode("ar", "one token per forward, as in any causal model"),
        Mode(
            "linear",
            "a bidirectional pass drafts a block, a causal pass verifies it: the same output as ar",
            fields=("nld_block_length", "nld_draft_threshold", "nld_tree_nodes"),
            drafting=Drafting("draft", adapter=True, sampling="draft"),
        ),
        Mode(
            "quadratic",
            "the pass that verifies a block also drafts the next one: the same output as ar",
            fields=("nld_block_length", "nld_groups", "nld_verifier_mix"),
            drafting=Drafting("draft", adapter=True, sampling="draft"),
            grouped=True,
        ),
        Mode(
            "diffusion",
            "a block is denoised in a few passes and taken as it is",
            fields=("nld_block_length", "nld_threshold", "nld_max_denoise_steps"),
            drafting=Drafting("denoise", adapter=False, sampling="final"),
            accept="take",
            counts_prefill=False,
            refused=SHIFTS,
        ),
    )
}
