"""The `vllm-nld` command: doctor, demo, evaluation and the nano checkpoint. Serving itself is `vllm serve`."""

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from importlib import metadata

from vllm_nld import __version__

# Each module has add_arguments(parser) and run(args) -> exit status. It is imported only if its command is called.
COMMANDS = {
    "doctor": ("vllm_nld.tools.doctor", "check that this machine can serve, and a checkpoint if named"),
    "demo": ("vllm_nld.tools.demo", "serve the small checkpoint and ask it held-out prompts"),
    "evaluate": ("vllm_nld.evaluate.command", "compare modes on your prompts: accuracy, speed, cost"),
    "compare": ("vllm_nld.evaluate.compare", "is one server, or one evaluation, worse than another?"),
    "tune": ("vllm_nld.evaluate.tune", "find the threshold and block length that meet a target"),
    "probe": ("vllm_nld.tools.probe", "ask a running server for one token"),
    "deploy-files": ("vllm_nld.tools.deploy_files", "write out the chart, rules, dashboard, Serve and compose files"),
    "plan": ("vllm_nld.plan.command", "how many GPUs of which kind, in which mode, for a P95 at a traffic; the cost"),
    "adapter train": ("vllm_nld.adapter.train", "fit the draft adapter to your own prompts"),
    "adapter evaluate": ("vllm_nld.adapter.evaluate", "acceptance with and without an adapter; is a new one better?"),
    "masks": ("attention_backend.draw", "draw every attention mask, queries by keys"),
    "nano path": ("vllm_nld.nano.path", "print the folder of the small checkpoint"),
    "nano train": ("vllm_nld.nano.train", "train the small checkpoint again"),
    "nano eval": ("vllm_nld.nano.evaluate", "evaluate the small checkpoint on held-out prompts"),
    "nano-vlm path": ("vllm_nld.nano_vlm.path", "print the folder of the small vision-language checkpoint"),
    "nano-vlm train": ("vllm_nld.nano_vlm.train", "train it, from the small checkpoint"),
    "nano-vlm eval": ("vllm_nld.nano_vlm.evaluate", "evaluate it on held-out pictures"),
}

EXTRAS = {name: "evaluate" for name in ("evaluate", "compare", "tune")}  # the extra that a command needs


def lacking(extra: str) -> list[str]:
    """The packages of an extra that are not installed."""
    found = []
    for requirement in metadata.requires("vllm-nld") or ():
        wanted, _, marker = requirement.partition(";")
        name = re.split(r"[^\w.-]", wanted.strip())[0]
        if f'extra == "{extra}"' in marker and not any(metadata.distributions(name=name)):
            found.append(name)
    return found


def overview() -> argparse.ArgumentParser:
    """The parser if no command was recognized; it handles --help and --version."""
    listed = "\n".join(f"  {name:<16} {text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="vllm-nld",
        usage="vllm-nld COMMAND [--help] [options]",
        description=f"{__doc__}\n\ncommands:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vllm-nld {__version__}")
    return parser


def parser_of(name: str) -> argparse.ArgumentParser:
    """A command's parser."""
    module_name, text = COMMANDS[name]
    parser = argparse.ArgumentParser(prog=f"vllm-nld {name}", description=text)
    importlib.import_module(module_name).add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            options = parser_of(name).parse_args(words[length:])
            if name in EXTRAS and (missing := lacking(EXTRAS[name])):
                needs = f"needs {', '.join(missing)}: pip install 'vllm-nld[{EXTRAS[name]}]'"
                print(f"vllm-nld {name} {needs}", file=sys.stderr)
                return 2
            status: int = importlib.import_module(COMMANDS[name][0]).run(options)
            return status
    parser = overview()
    parser.parse_args(words[:1] if words[:1] in (["-h"], ["--help"], ["--version"]) else [])
    parser.error(f"unknown command {' '.join(words[:2])!r}" if words else "missing command")


if __name__ == "__main__":
    sys.exit(main())
