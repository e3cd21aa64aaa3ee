"""The contenders as data: servers and the requests sent to them. A new mode is one entry.

Peers are what a user would choose instead. `body` goes into each request, so contenders can share a server.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_CONCURRENCY = 32
COMMON = ["--max-num-seqs", str(MAX_CONCURRENCY), "--max-model-len", "1024", "--no-enable-prefix-caching"]
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
    """

    server: str | None
    forwards: str
    body: Mapping[str, Any] = field(default_factory=dict)
    block_length: int | None = None
    most: int = MAX_CONCURRENCY  # highest concurrency at which it is timed; 0: not timed, only its answers count
    quick: bool = False  # included in --quick


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

SERVERS = {
    "stock": Setup(nld(mode="ar"), STOCK),
    "stock ngram": Setup((*ngram(4), *COUNTED), STOCK),
    "ar": Setup(nld(mode="ar")),
    "nld": Setup(COUNTED),  # the defaults: linear unless a request chooses another mode
    "trees": Setup((*nld(mode="linear", tree_nodes=max(TREE_NODES)), *COUNTED)),
}


def request_body(**fields: Any) -> dict[str, Any]:
    """A request body with these nld_* fields."""
    return {"vllm_xargs": {f"nld_{name}": value for name, value in fields.items()}}


def diffusion(threshold: float, most: int = 0, quick: bool = False) -> Contender:
    body = request_body(mode="diffusion", threshold=threshold)
    return Contender("nld", "server", body, block_length=32, most=most, quick=quick)


def tree(nodes: int) -> Contender:
    body = request_body(mode="linear", tree_nodes=nodes)
    return Contender("trees", "rounds", body, block_length=32, most=16)


STOCK_AR, AR = "stock vLLM, AR", "AR"
CONTENDERS = {
    "plain PyTorch, AR": Contender(None, "tokens", most=1),
    STOCK_AR: Contender("stock", "tokens", quick=True),
    "stock vLLM, ngram": Contender("stock ngram", "lookup"),
    AR: Contender("ar", "tokens", quick=True),
    "AR, by request": Contender("nld", "tokens", request_body(mode="ar")),
    "linear, B 32": Contender("nld", "rounds", block_length=32, quick=True),
    "linear, B 16": Contender("nld", "rounds", request_body(block_length=16), block_length=16),
    "linear, B 8": Contender("nld", "rounds", request_body(block_length=8), block_length=8),
    **{f"linear, tree of {nodes}": tree(nodes) for nodes in TREE_NODES},
    "diffusion, 0.9": diffusion(0.9, most=MAX_CONCURRENCY, quick=True),
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
