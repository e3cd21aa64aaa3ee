"""Trains nano-vlm from nano's weights and writes a whole checkpoint folder: `vllm-nld nano-vlm train`.

The stages are nano's: next tokens alone, which also teaches the tower to see; next tokens and denoising; the draft
adapter. Three batches in ten are nano's own texts.

    vllm-nld nano-vlm train --out runs/nano-vlm                 # two to three hours on two idle cores; --resume goes on
    vllm-nld nano-vlm eval --checkpoint runs/nano-vlm --card    # ten minutes

To ship it, copy the folder to `vllm_nld/nano_vlm/checkpoint`, but for state.pt and history.json.
"""

import argparse
import json
import random
from pathlib import Path

from vllm_nld.nano import train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vllm-nld nano-vlm train`: nano's, with other defaults."""
    train.add_arguments(parser)
    parser.set_defaults(
        out=Path("runs/nano-vlm"), ar_steps=3000, joint_steps=5000, decay_steps=3000, adapter_steps=400, rows=3072
    )


def run(args: argparse.Namespace) -> int:
    """Start the processes and wait for them. Returns the exit status."""
    return train.run(args, work)


def work(rank: int, args: argparse.Namespace) -> None:
    """One process; the first one saves and exports."""
    import torch
    import torch.distributed as dist

    from vllm_nld.nano.export import export, plot
    from vllm_nld.nano.speed import fast_training
    from vllm_nld.nano_vlm.card import write_card
    from vllm_nld.nano_vlm.export import CONFIG, build_tokenizer
    from vllm_nld.nano_vlm.trainer import VlmTrainer

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    dist.init_process_group("gloo", rank=rank, world_size=args.processes)
    tokenizer = build_tokenizer()
    trainer = VlmTrainer(args, tokenizer, rank)
    with fast_training():
        trainer.train_base()
        trainer.train_adapter()
    if rank == 0:
        (args.out / "history.json").write_text(json.dumps({"minutes": trainer.minutes, "rows": trainer.history}))
        export(trainer.model, tokenizer, args.out, CONFIG)
        plot(trainer.history, args.out / "loss.png")
        steps = {"AR": args.ar_steps, "joint": args.joint_steps, "adapter": args.adapter_steps}
        write_card(args.out, steps, args.seed, trainer.minutes)
    dist.destroy_process_group()
