"""`vllm-nld doctor`: is everything in place to serve, and if not, what to do.

vLLM only logs a plugin that fails to load, and then answers "unknown architecture". This command says why instead.
Each group of checks is in a file of its own; the exit status is 1 if a check failed.
"""

import argparse
import json
import sys
import textwrap
from dataclasses import asdict
from functools import partial
from pathlib import Path

from vllm_nld.tools.doctor.check import Check, Group
from vllm_nld.tools.doctor.checkpoint import check_checkpoint
from vllm_nld.tools.doctor.contract import check_contract
from vllm_nld.tools.doctor.machine import check_device, check_triton
from vllm_nld.tools.doctor.plugin import check_plugin
from vllm_nld.tools.doctor.versions import check_versions

__all__ = ["Check", "add_arguments", "run"]

HERE = (  # in an order in which the first failure is the one to fix first
    Group("installed releases", check_versions, vital=True),
    Group("plugin (imports vLLM, which takes a while)", check_plugin),
    Group("Triton", check_triton),
    Group("device", check_device),
)

INDENT = " " * 35  # of what does not fit into a line, below the details


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vllm-nld doctor`."""
    parser.add_argument("checkpoint", nargs="?", type=Path, help="a checkpoint folder to check as well")
    parser.add_argument(
        "--contract",
        type=Path,
        metavar="WHEEL",
        help="instead, check that another vLLM (wheel or folder) still has every name that vllm-nld relies on",
    )
    parser.add_argument("--verbose", "-v", action="store_true", help="list every patch and every kernel")
    parser.add_argument("--json", action="store_true", help="print all checks as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the report as the checks run; status 1 if one failed."""
    checks: list[Check] = []
    for group in groups_of(args):
        print(group.title, file=sys.stderr if args.json else sys.stdout, flush=True)
        begin = len(checks)
        for check in group.run():
            checks.append(check)
            if not args.json and (args.verbose or check.summary or not check.passed):
                print(text(check), flush=True)
                if args.verbose and check.more:
                    print(textwrap.indent(check.more, INDENT), flush=True)
        if group.vital and not all(check.passed for check in checks[begin:]):
            break
    failed = sum(not check.passed for check in checks)
    if args.json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        print(f"\n{failed} of {len(checks)} checks failed" if failed else f"\nall {len(checks)} checks passed")
    return int(failed > 0)


def groups_of(args: argparse.Namespace) -> list[Group]:
    """The groups that the command line asks for."""
    if args.contract:
        return [Group(f"what vllm-nld relies on, in {args.contract.name}", partial(check_contract, args.contract))]
    groups = list(HERE)
    if args.checkpoint is not None:
        groups.append(Group("checkpoint", partial(check_checkpoint, args.checkpoint)))
    return groups


def text(check: Check) -> str:
    """A check as the report shows it; a failure is not broken into lines, so that it can be searched for."""
    line = f"  {'ok  ' if check.passed else 'FAIL'}  {check.name:<26} {check.detail}"
    if not check.passed:
        return f"{line}\n{INDENT}-> {check.remedy}"
    return textwrap.fill(line, width=120, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False)
