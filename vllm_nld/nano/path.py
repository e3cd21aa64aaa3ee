"""`vllm-nld nano path`: prints the folder of the shipped checkpoint, for `vllm serve "$(vllm-nld nano path)"`."""

import argparse

from vllm_nld.nano import checkpoint_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(args: argparse.Namespace) -> int:
    """Print the path. Returns the exit status."""
    print(checkpoint_path())
    return 0
