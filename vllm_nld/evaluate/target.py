"""The server that is evaluated: a running one by its URL, or one that is started for a checkpoint.

with opened("http://localhost:8000") as target: ...
with opened("/models/Nemotron-Labs-Diffusion-8B", variants, flags=["--max-num-seqs", "64"], log=log) as target:
    target.url, target.model, target.modes
"""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_nld.evaluate import counts
from vllm_nld.evaluate.asking import Unreachable
from vllm_nld.evaluate.variant import Variant
from vllm_nld.tools import probe
from vllm_nld.tools.server import Server

START = 1800.0  # seconds for a large checkpoint to load
CONFIG = "--additional-config"
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")


@dataclass(frozen=True, slots=True)
class Target:
    """A server that answers. modes: those that it offers; empty if it hasn't this plugin."""

    url: str
    model: str
    modes: tuple[str, ...] = ()
    build: str = ""


def is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def look(url: str, model: str | None = None) -> Target:
    """What a running server says of itself. Raises Unreachable if it doesn't answer."""
    url = url.rstrip("/").removesuffix("/v1")
    try:
        served = [entry["id"] for entry in probe.call(f"{url}/v1/models")["data"]]
        with contextlib.suppress(OSError):
            text = counts.fetch(url)
            return Target(url, model or served[0], tuple(counts.modes(text)), describe(counts.build(text)))
    except (OSError, ValueError, LookupError) as error:
        raise Unreachable(f"{url} doesn't answer: {getattr(error, 'reason', error)}") from None
    return Target(url, model or served[0])


def describe(build: dict[str, str]) -> str:
    """The server's versions in one sentence."""
    if not build:
        return ""
    versions = f"vllm-nld {build['version']}, vLLM {build['vllm_version']}, torch {build['torch_version']}"
    return f"The server ran {versions}; its default mode is {build['default_mode']}."


@contextlib.contextmanager
def opened(
    name: str,
    variants: Sequence[Variant] = (),
    *,
    flags: Sequence[str] = (),
    log: Path = Path("server.log"),
    tools: bool = False,
    model: str | None = None,
) -> Iterator[Target]:
    """Use a running server, or start one that offers the variants' modes. tools: whether rows have tools.

    Raises Unreachable or ServerError (RuntimeErrors) if it doesn't answer.
    """
    if is_url(name):
        yield look(name, model)
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = [*settings(variants, flags, tools), *flags]
    with Server(name, arguments, log=log, timeout=START, progress=show) as server:
        print(file=sys.stderr)
        yield look(server.url, model)


def show(seconds: float) -> None:
    """How long a server has been starting."""
    if sys.stderr.isatty():
        print(f"\rStarting vllm serve ... {seconds:.0f} s ", end="", file=sys.stderr, flush=True)


def settings(variants: Sequence[Variant], flags: Sequence[str], tools: bool = False) -> list[str]:
    """The flags without which a server doesn't offer these variants, or tools; not those that the caller sets."""
    found: dict[str, Any] = {}
    if grouped := [variant.fields.get("groups", 2) for variant in variants if variant.mode == "quadratic"]:
        found["groups"] = max(grouped)
    if nodes := max((variant.fields.get("tree_nodes", 0) for variant in variants), default=0):
        found["tree_nodes"] = nodes
    given = {flag.split("=")[0] for flag in flags}
    arguments = [CONFIG, json.dumps({"nld": found})] if found and CONFIG not in given else []
    return [*arguments, *TOOLS] if tools and TOOLS[0] not in given else arguments
