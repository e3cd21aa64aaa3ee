"""The contenders as data: servers and the requests sent to them. A new mode is one entry.

Peers are what a user would choose instead. `body` goes into each request, so contenders can share a server.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64)
FEW = (1, 8, 64)  # for contenders whose curve is of less interest
COMMON = ["--max-num-seqs", str(max(CONCURRENCIES)), "--max-model-len", "1024", "--no-enable-prefix-caching"]
COMMON += ["--max-num-batched-tokens", "4096"]  # 64 blocks of 32, and as much again for prompts
COMMON += ["--served-model-name", "bench"]
COUNTED = ("--per-request-spec-decode-metrics", "summary")  # servers without speculation reject it


@dataclass(frozen=True, slots=True)
class Setup:
    """A server's flags, in addition to COMMON, and its environment."""

    flags: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to decode: a server (None: plain PyTorch in the benchmark's own process) and its requests' extra fields.

    forwards: how to derive a request's NFE from its output tokens and verify steps, see `nfe`.
    at: the concurrencies at which it is timed; none: not timed, only its answers count.
    moves: also timed under the moving load, see `bench.load`.
    rows: tokens that a round computes, drafted and verified; None: it depends.
    """

    server: str | None
    forwards: str
    body: Mapping[str, Any] = field(default_factory=dict)
    block_length: int | None = None
    at: tuple[int, ...] = CONCURRENCIES
    moves: bool = False
    quick: bool = False  # included in --quick
    rows: int | None = None


def nld(**settings: Any) -> tuple[str, ...]:
    """The flag with the plugin's settings."""
    return "--additional-config", json.dumps({"nld": settings})


def ngram(drafts: int) -> tuple[str, ...]:
    """vLLM's prompt lookup with the settings from its documentation."""
    lookup = {"method": "ngram", "num_speculative_tokens": drafts, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
    return "--speculative-config", json.dumps(lookup)


# V1 is vLLM's default runner on a CPU. Without our Triton backend it uses its own C++ kernels, as without this plugin.
STOCK = {"VLLM_USE_V2_MODEL_RUNNER": "0", "TRITON_BACKENDS_IN_TREE": "1"}

TREE_NODES = (8, 16, 31, 48, 64, 96, 128)
GROUPS = (1, 2, 4, 6, 8, 16)  # of masks; 16 are all of them

SERVERS = {
    "stock": Setup(nld(mode="ar"), STOCK),
    "stock ngram": Setup((*ngram(4), *COUNTED), STOCK),
    "ar": Setup(nld(mode="ar")),
    "nld": Setup(COUNTED),  # the defaults; requests choose the mode
    "trees": Setup((*nld(mode="linear", tree_nodes=max(TREE_NODES)), *COUNTED)),
    "groups": Setup((*nld(mode="quadratic", block_length=16), *COUNTED)),
    "groups, no adapter": Setup((*nld(mode="quadratic", block_length=16, draft_lora="off"), *COUNTED)),
}


def request_body(**fields: Any) -> dict[str, Any]:
    """A request body with these nld_* fields."""
    return {"vllm_xargs": {f"nld_{name}": value for name, value in fields.items()}}


def linear(block_length: int, quick: bool = False) -> Contender:
    body = request_body(mode="linear", block_length=block_length)
    return Contender("nld", "rounds", body, block_length, moves=True, quick=quick, rows=2 * block_length)


def diffusion(threshold: float, at: tuple[int, ...] = (), quick: bool = False) -> Contender:
    body = request_body(mode="diffusion", threshold=threshold)
    return Contender("nld", "server", body, block_length=32, at=at, quick=quick)


def tree(nodes: int) -> Contender:
    body = request_body(mode="linear", tree_nodes=nodes)
    return Contender("trees", "rounds", body, block_length=32, at=(1, 4, 16), rows=32 + nodes + 1)


def quadratic(groups: int, server: str = "groups") -> Contender:
    body = request_body(mode="quadratic", groups=groups)
    return Contender(server, "server", body, block_length=16, at=(1, 4), rows=16 * (1 + groups))


AUTO, AR_SETTING = "auto", "AR, by request"
FIXED = {  # what `auto` chooses among, in its own server, so that only the requests differ
    AR_SETTING: Contender("nld", "tokens", request_body(mode="ar"), moves=True, quick=True),
    "linear, B 4": linear(4),
    "linear, B 8": linear(8),
    "linear, B 16": linear(16),
    "linear, B 32": linear(32, quick=True),
}
CHAINS = [name for name, contender in FIXED.items() if contender.rows]
TREES = {  # what can be verified instead of a chain
    **{f"linear, tree of {nodes}": tree(nodes) for nodes in TREE_NODES},
    **{f"quadratic, B 16, {groups} groups": quadratic(groups) for groups in GROUPS},
    **{f"quadratic, B 16, {groups} groups, no adapter": quadratic(groups, "groups, no adapter") for groups in GROUPS},
}
STOCK_AR, AR = "stock vLLM, AR", "AR"
CONTENDERS = {
    "plain PyTorch, AR": Contender(None, "tokens", at=(1,)),
    STOCK_AR: Contender("stock", "tokens", at=FEW, quick=True),
    "stock vLLM, ngram": Contender("stock ngram", "lookup", at=FEW),
    AR: Contender("ar", "tokens", quick=True),
    AUTO: Contender("nld", "server", request_body(mode="auto"), moves=True, quick=True),
    **FIXED,
    **TREES,
    "diffusion, 0.9": diffusion(0.9, at=FEW, quick=True),
    "diffusion, 0.7": diffusion(0.7),
    "diffusion, 0.5": diffusion(0.5),
}


def nfe(contender: Contender, tokens: int, accepted: Sequence[int]) -> int | None:
    """Model forwards of a request, from its output tokens and its histogram of accepted drafts per verify step.

    "rounds": the prefill, then one draft and one verify forward per step. "lookup": drafts cost no forward, so one for
    each token that was not an accepted draft. "tokens": one per token. "server": None, taken from the server's metrics.
    """
    if contender.forwards == "server":
        return None
    if contender.forwards == "rounds":
        return 1 + 2 * sum(accepted)
    return tokens - sum(drafts * steps for drafts, steps in enumerate(accepted))
