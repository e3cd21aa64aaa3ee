"""The `vllm-nld` command: doctor, demo, probe and the nano checkpoint. Serving itself is `vllm serve`."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from vllm_nld import __version__

# A module offers add_arguments(parser) and run(args) -> exit status, and is imported only when its command is called.
COMMANDS = {
    "doctor": ("vllm_nld.tools.doctor", "check that this machine, and a checkpoint, can serve"),
    "demo": ("vllm_nld.tools.demo", "serve the nano checkpoint and ask it held-out prompts"),
    "probe": ("vllm_nld.tools.probe", "ask a running server for one token"),
    "masks": ("attention_backend.draw", "draw every attention mask, query by key"),
    "nano path": ("vllm_nld.nano.path", "print where the shipped checkpoint is"),
    "nano train": ("vllm_nld.nano.train", "train the checkpoint again from its recipe"),
    "nano eval": ("vllm_nld.nano.evaluate", "measure the checkpoint on held-out prompts"),
}


def overview() -> argparse.ArgumentParser:
    """The parser that is left where no command was recognised: it knows --help and --version."""
    listed = "\n".join(f"  {name:<12} {text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="vllm-nld",
        usage="vllm-nld COMMAND [--help] [options]",
        description=f"{__doc__}\n\ncommands:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vllm-nld {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            module_name, text = COMMANDS[name]
            module = importlib.import_module(module_name)
            parser = argparse.ArgumentParser(prog=f"vllm-nld {name}", description=text)
            module.add_arguments(parser)
            return module.run(parser.parse_args(words[length:]))
    parser = overview()
    parser.parse_args(words[:1] if words[:1] in (["-h"], ["--help"], ["--version"]) else [])
    parser.error(f"unknown command {' '.join(words[:2])!r}" if words else "name a command")


if __name__ == "__main__":
    sys.exit(main())
