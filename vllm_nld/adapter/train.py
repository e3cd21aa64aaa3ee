"""`vllm-nld adapter train`: fit the draft adapter to one's own prompts. It changes speed, never an answer.

    vllm-nld adapter train /models/Nemotron-Labs-Diffusion-8B --prompts traffic.jsonl --out runs/adapter
    torchrun --nproc-per-node 4 --module vllm_nld.adapter.train MODEL --prompts ... --out ...      # four GPUs

Prompts are JSON lines with "messages", "turns" or "prompt"; rows without an "answer" are answered by the model itself.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_nld.adapter import memory
from vllm_nld.adapter.conversations import Conversation, encode, fit, read, render, split
from vllm_nld.model.adapter import RELEASED, TARGETS
from vllm_nld.roofline.shapes import shape_of

if TYPE_CHECKING:
    import torch

    from vllm_nld.reference.model import ReferenceModel

SHIPPED, ZERO = "shipped", "zero"
# What torchrun tells its processes. A server started by one of them would take it for its own.
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that training and evaluation share."""
    parser.add_argument("model", help="checkpoint folder or Hugging Face repository")
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL with messages, turns or prompt, and answers")
    parser.add_argument("--server", metavar="URL", help="a running server, for answers (default: start one)")
    parser.add_argument("--max-tokens", type=int, default=512, help="of answers to generate (default: 512)")
    parser.add_argument("--max-length", type=int, default=2048, help="tokens per conversation; longer answers are cut")
    parser.add_argument("--group", type=int, default=16, help="conversations at a time (default: 16)")
    parser.add_argument("--block-length", type=int, help="of drafts (default: the checkpoint's)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--seed", type=int, default=0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vllm-nld adapter train`."""
    add_data_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapter, the state and the plot")
    parser.add_argument("--heldout", type=float, default=0.1, help="share of prompts to measure on (default: 0.1)")
    parser.add_argument("--heldout-prompts", type=Path, metavar="FILE", help="prompts to measure on instead")
    parser.add_argument("--start", default=SHIPPED, help="shipped (default), zero, or an adapter's folder")
    parser.add_argument("--rank", type=int, default=128, help="of an adapter that starts from zero")
    parser.add_argument("--alpha", type=float, default=512, help="its output counts alpha / rank times")
    parser.add_argument(
        "--targets",
        nargs="+",
        choices=TARGETS,
        default=RELEASED,
        metavar="NAME",
        help=f"projections with an adapter: {', '.join(TARGETS)} (default: o_proj, as released)",
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=2e-4, help="peak learning rate (default: 2e-4)")
    parser.add_argument("--every", type=int, default=25, help="steps between measurements (default: 25)")
    parser.add_argument("--patience", type=int, default=6, help="measurements without a gain until it stops")
    parser.add_argument("--margin", type=float, default=0.02, help="acceptable loss in a category (default: 0.02)")
    parser.add_argument(
        "--shard", action="store_true", help="split the frozen weights over torchrun's processes (FSDP)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the state saved in --out")
    parser.add_argument("--estimate", action="store_true", help="print the GPU memory that it takes, and end")


def run(options: argparse.Namespace) -> int:
    """Train. Returns the exit status; every error that the user can fix is one line."""
    try:
        return train(options)
    except (ValueError, RuntimeError, OSError) as error:  # CheckpointError is a ValueError; a full disk an OSError
        print(f"vllm-nld adapter train: {error}", file=sys.stderr)
        return 1


def train(options: argparse.Namespace) -> int:
    """Load, answer, train, and say what came out."""
    folder, world = folder_of(options.model), int(os.environ.get("WORLD_SIZE", "1"))
    if options.shard and world == 1:
        raise ValueError("--shard splits the weights over several processes: start it with torchrun")
    shape, block = shape_of(str(folder)), options.block_length or block_size(folder)
    if os.environ.get("RANK", "0") == "0":
        shares = world if options.shard else 1
        targets = {*options.targets, *(RELEASED if options.start == SHIPPED else ())}
        print(memory.table(shape, options.rank, options.group, options.max_length, block, shares, targets))
    if options.estimate:
        return 0
    import torch

    from vllm_nld.adapter import processes
    from vllm_nld.adapter.trainer import STATE, Settings, Trainer, checkpointed

    settings = Settings(
        options.steps,
        options.group,
        options.rate,
        min(20, options.steps // 5),
        options.steps // 2,
        options.every,
        options.patience,
        options.block_length,
        options.seed,
        options.margin,
    )
    if (options.out / STATE).exists() and not options.resume:
        raise ValueError(f"{options.out} holds the state of a run: go on with --resume, or use another --out")
    options.out.mkdir(parents=True, exist_ok=True)
    with on_device(options) as (device, dtype):
        rank = processes.connect(world)
        with processes.first_alone(rank, world):
            data, heldout = data_of(options, folder)
        model = model_of(folder, options, torch.device("cpu") if options.shard else device, dtype)
        if options.shard:
            processes.shard(model, device)
        anyone = processes.anyone if options.shard else bool
        trainer = Trainer(model, data, heldout, settings, options.out, rank, world, anyone)
        if options.resume:
            trainer.load()
        thrifty = device.type == "cuda" or dtype == torch.bfloat16
        with checkpointed(model) if thrifty else contextlib.nullcontext():
            best = trainer.run()
    if rank == 0:
        finish(trainer.history, options, best, folder)
    return 0


def finish(history: Sequence[dict[str, float]], options: argparse.Namespace, best: float, folder: Path) -> None:
    """Write the history and the plot, and say how to go on."""
    from vllm_nld.adapter.plot import draw
    from vllm_nld.adapter.trainer import ADAPTER

    model = options.model if options.model != "nano" else folder  # a name of ours, which vLLM doesn't know
    adapter = options.out.resolve() / ADAPTER

    (options.out / "history.json").write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
    draw(history, options.out / "training.png")
    first = next(row["heldout"] for row in history if "heldout" in row)
    print(f"held-out acceptance length {first:.2f} → {best:.2f}; the adapter is in {adapter}")
    agreement = [row["agreement"] for row in history if "agreement" in row]
    if agreement and sum(agreement) / len(agreement) < 0.8:
        share = sum(agreement) / len(agreement)
        print(f"only {share:.0%} of the answers' tokens are what the model would say: let it write the answers itself")
    print(f"check it:  vllm-nld adapter evaluate {options.model} --adapter {adapter} --prompts HELDOUT.jsonl")
    setting = json.dumps({"nld": {"draft_lora": str(adapter)}})
    print(f"serve it:  vllm serve {model} --additional-config '{setting}'")


# The model


def folder_of(model: str) -> Path:
    """A checkpoint's folder; a repository is downloaded, without code and pickles."""
    if Path(model).is_dir():
        return Path(model)
    if model == "nano":
        from vllm_nld.nano import checkpoint_path

        return checkpoint_path()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.jinja", "*.safetensors", "tokenizer*"]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(f"{model} is neither a checkpoint folder nor a repository that can be had: {error}") from None


def block_size(folder: Path) -> int:
    from vllm_nld.model.checkpoint import read_config

    return int(read_config(folder).get("block_size", 32))


def model_of(
    folder: Path, options: argparse.Namespace, device: "torch.device", dtype: "torch.dtype"
) -> "ReferenceModel":
    """The frozen model with the adapter that training starts from. Raises CheckpointError if they don't fit.

    Targets that an adapter lacks are added to it, with its rank.
    """
    import torch

    from vllm_nld.model.checkpoint import ADAPTER_DIR
    from vllm_nld.reference.model import ReferenceModel

    torch.manual_seed(options.seed)
    model = ReferenceModel.from_pretrained(folder, dtype, adapter=False).to(device)
    shipped = folder / ADAPTER_DIR
    if options.start == ZERO or (options.start == SHIPPED and not shipped.is_dir()):
        if options.rank < 1 or options.alpha <= 0:
            raise ValueError(f"--rank {options.rank} and --alpha {options.alpha} must be above 0")
        model.add_adapter(options.rank, options.alpha, options.targets)
    else:
        model.load_adapter(shipped if options.start == SHIPPED else Path(options.start))
        lora, known = next(model.loras()), model.adapter_weights(dtype)[0]
        rank = lora.lora_A.out_features
        model.add_adapter(rank, lora.scale * rank, [target for target in options.targets if target not in known])
    return model.to(device)


@contextlib.contextmanager
def on_device(options: argparse.Namespace) -> "Iterator[tuple[torch.device, torch.dtype]]":
    """Tensors are made on the device; matrices are multiplied in bf16 if the model is in bf16."""
    import torch

    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    local = os.environ.get("LOCAL_RANK")
    device = torch.device(f"cuda:{local}" if name == "cuda" and local else name)
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with device, torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        yield device, dtype


# The data


def data_of(options: argparse.Namespace, folder: Path) -> tuple[list[Conversation], list[Conversation]]:
    """Conversations to train on and to measure on. Raises ValueError if there are none."""
    answers = options.out / "answers.jsonl"
    found = conversations_of(options, folder, options.prompts, answers)
    if options.heldout_prompts:
        return found, conversations_of(options, folder, options.heldout_prompts, answers)
    return split(found, options.heldout)


def conversations_of(options: argparse.Namespace, folder: Path, file: Path, answers: Path) -> list[Conversation]:
    """A file's prompts with their answers, the model's own where the file has none."""
    from transformers import AutoTokenizer

    from vllm_nld.adapter.answers import ask_all, missing
    from vllm_nld.model.checkpoint import read_config
    from vllm_nld.model.configs import NemotronLabsDiffusionConfig, register_configs

    rows = read(file)
    register_configs()
    config, tokenizer = NemotronLabsDiffusionConfig(**read_config(folder)), AutoTokenizer.from_pretrained(folder)
    given = [encode(tokenizer, row, config.eos_token_ids[0]) for row in rows if row.answer is not None]
    asked = [row for row in rows if row.answer is None]
    if asked:
        prompts = [render(tokenizer, row) for row in asked]
        needed = server_of(options, folder, answers.parent)
        with needed if missing(answers, prompts) else contextlib.nullcontext(("", "")) as (url, name):
            given += ask_all(url, name, asked, prompts, answers, options.max_tokens)
    usable = fit(given, min(options.max_length, config.max_position_embeddings))
    usable = [one for one in usable if config.mask_token_id not in one.answer]
    if not usable:
        raise ValueError(f"{file}: no prompt has an answer of at least two tokens within {options.max_length} tokens")
    return usable


@contextlib.contextmanager
def server_of(options: argparse.Namespace, folder: Path, logs: Path) -> Iterator[tuple[str, str]]:
    """The URL and the model's name of the given server, or of one that is started for the answers."""
    from vllm_nld.adapter.answers import model_of as name_of
    from vllm_nld.tools.server import Server

    if options.server:
        yield options.server.rstrip("/"), name_of(options.server.rstrip("/"))
        return
    flags: list[Any] = ["--served-model-name", "nld", "--additional-config", json.dumps({"nld": {"mode": "ar"}})]
    logs.mkdir(parents=True, exist_ok=True)
    print("starting a server of the model for its answers", file=sys.stderr)
    flags += ["--max-model-len", str(options.max_length)]
    alone = dict.fromkeys(name for name in os.environ if name in TORCHRUN or name.startswith("TORCHELASTIC_"))
    with Server(folder, flags, log=logs / "server.log", environment=alone) as server:
        yield server.url, "nld"


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(cli)
    raise SystemExit(run(cli.parse_args()))
