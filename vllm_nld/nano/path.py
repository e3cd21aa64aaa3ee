"""`vllm-nld nano path`: where the shipped checkpoint is, for `vllm serve "$(vllm-nld nano path)"`."""

import argparse

from vllm_nld.nano import checkpoint_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(args: argparse.Namespace) -> int:
    """Print the path."""
    print(checkpoint_path())
    return 0
