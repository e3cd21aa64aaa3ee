"""The options that `evaluate`, `compare` and `tune` share, and what they stand for."""

import argparse
import hashlib
import shlex
from pathlib import Path
from typing import Any

from vllm_nld.evaluate import prompts, sandbox
from vllm_nld.evaluate.judge import Judge
from vllm_nld.evaluate.prompts import NANO, Problem
from vllm_nld.evaluate.row import Row
from vllm_nld.evaluate.scoring import Scorer


class Usage(ValueError):
    """What was asked can't be done; the message says what to change."""


def add_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """Prompts, how to ask them, checks, and where results go."""
    asking = parser.add_argument_group("prompts")
    asking.add_argument(
        "--prompts",
        default=NANO,
        metavar="FILE",
        help="JSONL, see docs/evaluate.md; nano (default) or nano-vlm: the held-out prompts of a small checkpoint",
    )
    asking.add_argument("--limit", type=int, metavar="N", help="only N prompts, spread over the tags")
    asking.add_argument("--strict", action="store_true", help="end if the file has a bad row or an unknown field")
    asking.add_argument(
        "--concurrency", type=int, default=8, metavar="N", help="requests at a time (default: %(default)s)"
    )
    asking.add_argument("--max-tokens", type=int, metavar="N", help="for rows that don't say (default: 1024)")
    asking.add_argument("--temperature", type=float, metavar="T", help="for rows that don't say (default: 0)")
    asking.add_argument(
        "--seed", type=int, default=0, help="from which every row gets its own seed (default: %(default)s)"
    )
    asking.add_argument(
        "--timeout", type=float, default=600, metavar="S", help="seconds for a request (default: %(default)s)"
    )
    server = parser.add_argument_group("server")
    server.add_argument(
        "--flags", default="", help="flags for a server that is started, such as '--max-model-len 8192'"
    )
    server.add_argument("--model", metavar="NAME", help="the model's name on the server (default: its first)")
    checking = parser.add_argument_group("checks")
    checking.add_argument("--run-commands", action="store_true", help="run the commands of checks, in a sandbox")
    checking.add_argument("--judge", metavar="URL", help="OpenAI URL of a model that answers the checks' questions")
    checking.add_argument("--judge-model", metavar="NAME", help="its name there (default: its first)")
    results = parser.add_argument_group("results")
    results.add_argument("--out", type=Path, default=Path(out), metavar="DIR", help="folder (default: %(default)s)")
    results.add_argument("--fresh", action="store_true", help="discard the answers that DIR holds")
    results.add_argument("--digests", action="store_true", help="keep digests of answers instead of their texts")
    results.add_argument("--no-texts", action="store_true", help="leave prompts and answers out of the report")
    results.add_argument("--gpus", type=float, default=1, metavar="N", help="GPUs of the server (default: %(default)s)")
    results.add_argument("--price", type=float, metavar="P", help="of a GPU hour")
    results.add_argument("--currency", default="$", metavar="C", help="of the price (default: %(default)s)")


def rows_of(options: argparse.Namespace) -> tuple[list[Row], list[Problem]]:
    """The rows to ask, in an order of which any prefix is a mixture. Raises Usage if there are none."""
    try:
        rows, problems = prompts.read(options.prompts)
    except (OSError, UnicodeDecodeError) as error:
        raise Usage(f"{options.prompts} can't be read: {getattr(error, 'strerror', None) or error}") from None
    if options.strict and problems:
        raise Usage("; ".join(map(str, problems)))
    if not rows:
        found = "; ".join(map(str, problems[:3])) or "it is empty"
        raise Usage(f"{options.prompts} has no row that can be asked: {found}")
    return prompts.interleave(rows)[: options.limit], problems


def scorer_of(options: argparse.Namespace, rows: list[Row]) -> Scorer:
    """Who checks answers. Raises Usage if commands can't be run in a sandbox, or the judge can't be reached."""
    wanted = any("command" in check for row in rows for check in row.checks)
    if options.run_commands and wanted and (reason := sandbox.refusal()):
        raise Usage(reason)
    if options.judge is None:
        return Scorer(options.run_commands)
    import openai

    try:
        return Scorer(options.run_commands, Judge(options.judge, options.judge_model))
    except openai.OpenAIError as error:
        raise Usage(f"the judge at {options.judge} doesn't answer: {error}") from None


def defaults_of(options: argparse.Namespace) -> dict[str, Any]:
    """Fields for rows that don't set them."""
    found = {"max_tokens": options.max_tokens, "temperature": options.temperature}
    return {name: value for name, value in found.items() if value is not None}


def fingerprint(options: argparse.Namespace, targets: list[str], rows: list[Row]) -> dict[str, Any]:
    """What stored answers depend on, besides the variants."""
    digest = hashlib.sha256("\n".join(row.digest() for row in rows).encode()).hexdigest()[:16]
    return {
        "model": " and ".join(Path(target).name if "://" not in target else target for target in targets),
        "prompts": f"{len(rows)} ({digest})",
        "concurrency": options.concurrency,
        "seed": options.seed,
        "defaults": defaults_of(options),
        "flags": shlex.split(options.flags),
        "checks": [options.run_commands, options.judge, options.judge_model],
        "digests": options.digests,
    }
