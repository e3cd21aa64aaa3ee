"""`vllm-nld nano-vlm path`: prints the folder of the shipped checkpoint."""

import argparse

from vllm_nld.nano_vlm import checkpoint_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(args: argparse.Namespace) -> int:
    """Print the path. Returns the exit status."""
    print(checkpoint_path())
    return 0
