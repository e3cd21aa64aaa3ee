"""The training loop of one process: steps, gradient averaging, learning rate, saved state.

Matrices inside the layers use Muon (orthogonalised momentum), embeddings, head and norms use AdamW; both from
torch.optim.
"""

import argparse
import itertools
import random
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from vllm_nld.nano.batches import Batch, NoiseMix, batches, collate, encode
from vllm_nld.nano.export import nano_config
from vllm_nld.nano.objective import draft_loss, losses
from vllm_nld.nano.probe import probe
from vllm_nld.nano.prompts import draw_heldout
from vllm_nld.nano.wiring import wire_copying
from vllm_nld.reference.model import ReferenceModel

MUON_RATE, ADAM_RATE, EMBEDDING_RATE, ADAPTER_RATE = 4e-3, 3e-3, 6e-3, 2e-3
COPY_SHARES = (0.3, 0.05)  # of the samples, in the AR stage and in the joint stage
AR_WEIGHT = 1.0  # in the joint stage; denoising counts 1
ADAPTER_RANK, ADAPTER_ALPHA = 128, 512
DRAFT_MIX = NoiseMix(draft=1.0, full=0.0, lengths=(32,))
SAVE_EVERY = 100


def initialise(model: ReferenceModel) -> None:
    """Normal weights, the projections back into the residual stream scaled down by depth."""
    depth = (2 * model.config.num_hidden_layers) ** -0.5
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            back = "o_proj" in name or "down" in name
            nn.init.normal_(weight, std=1.0 if "embed" in name else weight.shape[1] ** -0.5 * (depth if back else 1))


def base_optimizers(model: ReferenceModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for all else."""
    inner = [p for name, p in model.named_parameters() if p.dim() == 2 and "layers" in name]
    outer = [
        p for name, p in model.named_parameters() if not (p.dim() == 2 and "layers" in name) and "embed" not in name
    ]
    embeddings = {"params": [model.encoder.embed_tokens.weight], "lr": EMBEDDING_RATE}
    return [
        torch.optim.Muon(inner, lr=MUON_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [embeddings, {"params": outer}], lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        ),
    ]


def rate(step: int, steps: int, decay: int, warmup: int = 40) -> float:
    """Factor on the learning rate: up, level, then down to zero over the last `decay` steps."""
    return min(1.0, (step + 1) / warmup, (steps - step) / max(decay, 1))


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average the gradients of all processes, if there are several, and clip them."""
    if dist.is_initialized():
        flat = torch.cat([p.grad.flatten() for p in parameters])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad.copy_(part.view_as(p))
    nn.utils.clip_grad_norm_(parameters, 1.0)


class Trainer:
    """Model, optimizers and history of one process; all processes hold the same weights after every step."""

    def __init__(self, args: argparse.Namespace, tokenizer: Any, rank: int = 0, config: Any = None) -> None:
        self.args, self.tokenizer, self.rank = args, tokenizer, rank
        self.model = self.build(config)
        self.history: list[dict[str, float]] = []
        self.state = args.out / "state.pt"
        self.begun, self.before = time.time(), 0.0  # and the minutes that an interrupted run took
        self.probe_batch = self.build_probe()

    def build(self, config: Any) -> ReferenceModel:
        """The model before its first step."""
        model = ReferenceModel(config or nano_config())
        initialise(model)
        wire_copying(model)
        return model

    def build_probe(self) -> Batch:
        """Held-out text that `report` looks at."""
        held = draw_heldout(per_category=5)
        return collate(random.Random(5), [encode(self.tokenizer, prompt) for prompt in held], DRAFT_MIX)

    def batches(self, seed: int, mix: NoiseMix | None = None, copy_share: float = 0.0) -> Iterator[Batch]:
        """What the model is trained on."""
        return batches(self.tokenizer, seed=seed, rows=self.args.rows, mix=mix, copy_share=copy_share)

    @property
    def minutes(self) -> float:
        """Wall time so far, interrupted runs included."""
        return self.before + (time.time() - self.begun) / 60

    @property
    def stages(self) -> dict[str, int]:
        """Steps of each stage, in order; the adapter's is the last."""
        return {"AR": self.args.ar_steps, "joint": self.args.joint_steps, "adapter": self.args.adapter_steps}

    @property
    def steps(self) -> int:
        """Steps before the adapter's."""
        return sum(self.stages.values()) - self.args.adapter_steps

    def stream(self) -> Iterator[Any]:
        """The batches of those steps, one after another."""
        seed = self.args.seed * 1000 + self.rank
        first = self.batches(seed, copy_share=COPY_SHARES[0])
        second = self.batches(seed + 100, copy_share=COPY_SHARES[1])
        return itertools.chain(itertools.islice(first, self.args.ar_steps), second)

    def loss(self, step: int, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
        """A step's loss, and its parts for the plot."""
        args = self.args
        denoise = step >= args.ar_steps
        revealing = 2 * (args.ar_steps + args.joint_steps - step) <= args.decay_steps  # early, it is sure of nothing
        ar, diffusion = losses(self.model, batch, denoise, revealing)
        if not denoise:
            return ar, {"ar": ar.item()}
        return AR_WEIGHT * ar + diffusion, {"ar": ar.item(), "diffusion": diffusion.item()}

    def factor(self, step: int) -> float:
        """On the learning rate."""
        return rate(step, self.steps, self.args.decay_steps)

    def train_base(self) -> None:
        """AR alone, then AR and denoising; resumes where a saved state ends."""
        optimizers = base_optimizers(self.model)
        begin = self.load(optimizers) if self.args.resume else 0
        for step, batch in self.numbered(self.stream(), begin, self.steps, "base"):
            with torch.autocast("cpu", torch.bfloat16):
                loss, parts = self.loss(step, batch)
            self.update(loss, optimizers, self.factor(step))
            self.note(step, **parts)
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == self.steps:
                self.report(step + 1)
                self.save(step + 1, optimizers)

    def add_adapter(self) -> None:
        """The draft adapter before its first step."""
        self.model.add_adapter(ADAPTER_RANK, ADAPTER_ALPHA)

    def train_adapter(self) -> None:
        """The draft adapter on every o_proj, all other weights frozen."""
        args = self.args
        # Serving rounds the weights to bf16; the adapter is trained on the rounded ones.
        self.model.to(torch.bfloat16).to(torch.float32).requires_grad_(False)
        torch.manual_seed(args.seed + 1)
        self.add_adapter()
        adapter = [p for name, p in self.model.named_parameters() if "lora" in name]
        optimizers = [torch.optim.AdamW(adapter, lr=ADAPTER_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]
        stream = self.batches(args.seed * 1000 + 500 + self.rank, mix=DRAFT_MIX)
        for step, batch in self.numbered(stream, 0, args.adapter_steps, "adapter"):
            with torch.autocast("cpu", torch.bfloat16):
                loss = draft_loss(self.model, batch)
            self.update(loss, optimizers, rate(step, args.adapter_steps, args.adapter_steps))
            self.note(self.steps + step, draft=loss.item())
            if (step + 1) % SAVE_EVERY == 0:
                self.report(self.steps + step + 1, lora=True)

    def update(self, loss: torch.Tensor, optimizers: list[torch.optim.Optimizer], factor: float) -> None:
        """One step with the gradients of all processes averaged."""
        loss.backward()
        average_gradients([p for p in self.model.parameters() if p.grad is not None])
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group.setdefault("peak", group["lr"])
                group["lr"] = group["peak"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def numbered(self, stream: Iterator[Batch], begin: int, steps: int, name: str) -> Iterable[tuple[int, Batch]]:
        """Steps `begin` to `steps` with their batches; earlier ones are drawn and dropped: a resumed run sees the
        same text."""
        for _ in range(begin):
            next(stream)
        bar = tqdm(range(begin, steps), desc=name, initial=begin, total=steps, disable=self.rank > 0, mininterval=5)
        for step in bar:
            yield step, next(stream)
            if self.history and self.rank == 0:
                bar.set_postfix({k: f"{v:.3f}" for k, v in self.history[-1].items() if k != "step"})

    def note(self, step: int, **values: float) -> None:
        """Keep a step's losses for the plot."""
        self.history.append({"step": step} | values)

    def report(self, step: int, lora: bool = False) -> None:
        """Print the teacher-forced figures on held-out prompts."""
        if self.rank > 0:
            return
        with torch.autocast("cpu", torch.bfloat16):
            right, length = probe(self.model, self.probe_batch, lora)
        recent = self.history[-SAVE_EVERY:]
        names = [name for name in recent[-1] if name != "step" and all(name in row for row in recent)]
        text = " ".join(f"{name} {sum(row[name] for row in recent) / len(recent):.4f}" for name in names)
        tqdm.write(f"step {step}: exact {right.float().mean().item():.2f} draft length {length:.2f} {text}")

    def save(self, step: int, optimizers: list[torch.optim.Optimizer]) -> None:
        """Write all that `--resume` needs."""
        if self.rank == 0:
            state = {"step": step, "model": self.model.state_dict(), "history": self.history, "minutes": self.minutes}
            state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
            torch.save(state, self.state)

    def load(self, optimizers: list[torch.optim.Optimizer]) -> int:
        """Read a saved state and return its step."""
        state = torch.load(self.state, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            peaks = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["peak"] = peak
        self.history, self.before = state["history"], state["minutes"]
        return state["step"]
