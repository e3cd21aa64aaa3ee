"""Trains nano-vlm from nano's weights and writes a whole checkpoint folder: `vllm-nld nano-vlm train`.

First the tower learns to see; then nano's stages: next tokens alone, next tokens and denoising, the draft adapter.

    vllm-nld nano-vlm train --out runs/nano-vlm                 # on one core; --resume goes on
    vllm-nld nano-vlm eval --checkpoint runs/nano-vlm --card

To ship it, copy the folder to `vllm_nld/nano_vlm/checkpoint`, but for state.pt and history.json.
"""

import argparse
from pathlib import Path

from vllm_nld.nano import train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vllm-nld nano-vlm train`: nano's with other defaults, and the first stage's."""
    train.add_arguments(parser)
    parser.add_argument("--sight-steps", type=int, default=1000, help="first steps, of tower and projector alone")
    parser.add_argument("--cells", type=int, default=1024, help="cells of pictures in each of those steps")
    parser.set_defaults(
        out=Path("runs/nano-vlm"),
        ar_steps=150,
        joint_steps=1800,
        decay_steps=1400,
        adapter_steps=100,
        rows=1536,
        processes=1,
    )


def recipe(args: argparse.Namespace, rank: int) -> train.Recipe:
    """For one process."""
    from vllm_nld.nano_vlm import card
    from vllm_nld.nano_vlm.export import CONFIG, build_tokenizer
    from vllm_nld.nano_vlm.trainer import VlmTrainer

    return train.Recipe(VlmTrainer(args, build_tokenizer(), rank), CONFIG, card.TEXT)


def run(args: argparse.Namespace) -> int:
    """Train and export. Returns the exit status."""
    return train.run(args, recipe)
