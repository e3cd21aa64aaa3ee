"""Trains nano from nothing and writes a whole checkpoint folder: `vllm-nld nano train --out runs/nano`.

Three stages with fixed seeds and step counts: AR alone, AR and denoising together, then the draft adapter with all
else frozen, on exactly what drafting sees. Two single-threaded processes share every step and average their
gradients: on a few cores that is faster than one process with two threads, and gentler to whatever else runs there.

The learning rate is constant and then falls linearly to zero, so a run that was stopped before the fall can be
continued (`--resume`) with other step counts and is then the same run. In the second half of the fall, denoising
trains on blocks that show what the model is already sure of (`objective.reveal`).
"""

import argparse
import json
import os
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_nld.nano.trainer import Trainer

PATIENCE = timedelta(days=1)  # of a process with the others, which somebody may have paused


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a run makes, beside the checkpoint's weights."""

    trainer: "Trainer"
    config: dict[str, Any]
    card: str  # README.md without figures; takes seed, steps and minutes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vllm-nld nano train`."""
    parser.add_argument("--out", type=Path, default=Path("runs/nano"), help="folder to write the checkpoint to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ar-steps", type=int, default=300, help="steps of next-token loss alone")
    parser.add_argument("--joint-steps", type=int, default=7700, help="steps of next-token and denoising loss")
    parser.add_argument(
        "--decay-steps", type=int, default=4000, help="last steps, in which the learning rate falls to zero"
    )
    parser.add_argument("--adapter-steps", type=int, default=400, help="steps of the draft adapter")
    parser.add_argument("--rows", type=int, default=2048, help="tokens a step and process, noisy copies included")
    parser.add_argument("--processes", type=int, default=2, help="single-threaded processes that share a step")
    parser.add_argument("--resume", action="store_true", help="go on from the state saved in --out")


def recipe(args: argparse.Namespace, rank: int) -> Recipe:
    """Nano's, for one process."""
    from vllm_nld.nano import card, export
    from vllm_nld.nano.trainer import Trainer

    tokenizer = export.load_or_build_tokenizer(args.out, write=rank == 0)
    return Recipe(Trainer(args, tokenizer, rank), export.CONFIG, card.TEXT)


def run(args: argparse.Namespace, recipe: Callable[[argparse.Namespace, int], Recipe] = recipe) -> int:
    """Train, in as many processes as asked for; the first one writes the checkpoint. Returns the exit status."""
    args.out.mkdir(parents=True, exist_ok=True)
    if args.processes == 1:
        work(0, args, recipe)
    else:
        import torch.multiprocessing as mp

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
        mp.spawn(work, args=(args, recipe), nprocs=args.processes)
    print(f"checkpoint written to {args.out}")
    return 0


def work(rank: int, args: argparse.Namespace, recipe: Callable[[argparse.Namespace, int], Recipe]) -> None:
    """One process: builds tokenizer and model, runs the stages, and, as the first one, saves and exports."""
    import torch
    import torch.distributed as dist

    from vllm_nld.nano.card import write_card
    from vllm_nld.nano.export import export, plot
    from vllm_nld.nano.speed import fast_training

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    if args.processes > 1:
        dist.init_process_group("gloo", rank=rank, world_size=args.processes, timeout=PATIENCE)
    made = recipe(args, rank)
    trainer = made.trainer
    with fast_training():
        trainer.train_base()
        trainer.train_adapter()
    if rank == 0:
        history = {"minutes": trainer.minutes, "rows": trainer.history}
        (args.out / "history.json").write_text(json.dumps(history))
        export(trainer.model, trainer.tokenizer, args.out, made.config)
        plot(trainer.history, args.out / "loss.png")
        write_card(args.out, made.card, args.seed, trainer.stages, trainer.minutes)
    if args.processes > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(cli)
    raise SystemExit(run(cli.parse_args()))
