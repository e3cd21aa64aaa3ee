"""The training loop: steps over groups of answers, held-out acceptance, early stop, saved state.

    trainer = Trainer(model, train, heldout, Settings(steps=400), Path("runs/adapter"))
    trainer.run()                                   # writes adapter/ with the best weights so far, and state.pt

A step walks through a group of answers, adds up the gradients of all of their blocks, and updates the adapter once. If
there are several processes, each takes its share of the answers, and the update is what one process would make. The
order of the data depends on the seed and the step alone, so a run that goes on from its saved state ends like one that
was never interrupted.
"""

import contextlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from vllm_nld.adapter.conversations import Conversation
from vllm_nld.adapter.figures import Run, verdict
from vllm_nld.adapter.walk import Group, rounds, trace
from vllm_nld.model.adapter import write_adapter
from vllm_nld.nano.trainer import average_gradients, rate
from vllm_nld.reference.model import ReferenceModel

WINDOW = 8  # groups among which conversations are sorted by length, so that a group pads little
STATE, ADAPTER = "state.pt", "adapter"


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train. Raises ValueError for a value that can't be.

    steps: updates of the adapter. group: conversations of a step, for each process. peak: learning rate. warmup, decay:
    steps at its beginning and end. every: steps between measurements on held-out answers. patience: measurements
    without a gain until it stops. margin: acceptable loss in a category of held-out answers.
    """

    steps: int = 400
    group: int = 16
    peak: float = 2e-4
    warmup: int = 20
    decay: int = 200
    every: int = 25
    patience: int = 6
    block_length: int | None = None
    seed: int = 0
    margin: float = 0.02

    def __post_init__(self) -> None:
        for name in ("steps", "group", "every", "patience", "peak"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.block_length is not None and self.block_length < 2:
            raise ValueError(f"block_length must be at least 2, not {self.block_length}")


def order(conversations: Sequence[Conversation], group: int, seed: int, epoch: int, least: int = 1) -> list[list[int]]:
    """An epoch's groups: shuffled, of like length within windows. The last group may be smaller.

    If it has fewer than `least`, it joins the one before it.
    """
    source = random.Random(seed * 1_000_003 + epoch)
    indices = list(range(len(conversations)))
    source.shuffle(indices)
    groups = []
    for first in range(0, len(indices), WINDOW * group):
        window = sorted(indices[first : first + WINDOW * group], key=lambda i: (len(conversations[i].answer), i))
        groups += [window[i : i + group] for i in range(0, len(window), group)]
    if len(groups) > 1 and len(groups[-1]) < least:
        groups[-2:] = [groups[-2] + groups[-1]]
    source.shuffle(groups)
    return groups


class Trainer:
    """One process. All processes of several hold the same adapter after every step."""

    def __init__(
        self,
        model: ReferenceModel,
        train: Sequence[Conversation],
        heldout: Sequence[Conversation],
        settings: Settings,
        out: Path,
        rank: int = 0,
        world: int = 1,
        anyone: Callable[[bool], bool] = bool,
    ) -> None:
        """The model must have a draft adapter, fresh or loaded. anyone: see `rounds`."""
        self.model, self.data, self.heldout, self.settings, self.out = model, train, heldout, settings, out
        self.rank, self.world, self.anyone = rank, world, anyone
        if len(train) < world:
            raise ValueError(f"{world} processes need at least as many conversations to train on, not {len(train)}")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora" in name)
        self.weights = [p for p in model.parameters() if p.requires_grad]
        if not self.weights:
            raise ValueError("the model has no draft adapter to train: add or load one first")
        self.optimizer = torch.optim.AdamW(self.weights, lr=settings.peak, betas=(0.9, 0.95), weight_decay=0.0)
        self.history: list[dict[str, float]] = []
        self.step, self.best, self.stale = 0, 0.0, 0
        self.first: Run | None = None  # the start on the held-out answers

    def run(self, until: int | None = None) -> float:
        """Train to the last step, or to an earlier one; the best held-out acceptance length so far."""
        end = min(self.settings.steps, until or self.settings.steps)
        if not self.history:
            self._judge()
        bar = tqdm(
            range(self.step, end), "adapter", initial=self.step, total=self.settings.steps, disable=self.rank > 0
        )
        for _ in bar:
            if self.stale >= self.settings.patience:
                break
            found = self.update()
            self.step += 1
            self.history.append({"step": self.step, **found})
            if self.step % self.settings.every == 0 or self.step == self.settings.steps:
                self._judge()
            bar.set_postfix(loss=f"{found['loss']:.3f}", al=f"{found['al']:.2f}", best=f"{self.best:.2f}")
        return self.best

    def update(self) -> dict[str, float]:
        """One step; its loss and acceptance length, by block."""
        group = Group.of(self.model, [self.data[index] for index in self._indices()])
        loss, tokens, blocks = 0.0, 0.0, 0.0
        for step in rounds(self.model, group, True, self.settings.block_length, self.anyone):
            step.loss.backward()
            loss, tokens, blocks = loss + step.loss.item(), tokens + sum(step.emitted), blocks + len(step.rows)
        sums = torch.tensor([loss, tokens, blocks, group.agreement], dtype=torch.float64)
        if self.world > 1:
            dist.all_reduce(sums)
        loss, tokens, blocks, agreement = sums.tolist()
        for weight in self.weights:
            if weight.grad is None:  # every answer of the group had a single token left
                weight.grad = torch.zeros_like(weight)
            weight.grad *= self.world / blocks
        average_gradients(self.weights)
        factor = rate(self.step, self.settings.steps, self.settings.decay, max(1, self.settings.warmup))
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self.settings.peak * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": loss / blocks, "al": tokens / blocks, "agreement": agreement / self.world}

    def _indices(self) -> list[int]:
        """This process's conversations of the step."""
        size, seed = self.settings.group * self.world, self.settings.seed
        epoch, index = divmod(self.step, len(order(self.data, size, seed, 0, self.world)))
        return order(self.data, size, seed, epoch, self.world)[index][self.rank :: self.world]

    def _judge(self) -> None:
        """Measure on the held-out answers, keep the weights if they are the best, and save the state.

        Weights that are certainly worse than the first ones in some category, by more than the margin, are not kept.
        """
        found = measure(self.model, self.heldout, True, self.settings, self.anyone)
        self.first = self.first or found
        length, worse = found.acceptance_length, verdict(self.first, found, self.settings.margin).worse
        self.history.append({"step": self.step, "heldout": length})
        if self.rank == 0:
            lost = f"; not kept, because it is worse in {', '.join(worse)}" if worse else ""
            tqdm.write(f"step {self.step}: held-out acceptance length {length:.3f}{lost}")
        better = length > self.best and not worse
        self.best, self.stale = (length, 0) if better else (self.best, self.stale + 1)
        if self.rank == 0:
            with writing(self.out):
                if better:
                    save_adapter(self.model, self.out / ADAPTER)
                self.save()

    # State

    def _fingerprint(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        shapes = [list(weight.shape) for weight in self.weights]
        data = [len(self.data), len(self.heldout), sum(len(one.ids) for one in [*self.data, *self.heldout])]
        return {"settings": asdict(self.settings), "shapes": shapes, "data": data, "processes": self.world}

    def save(self) -> None:
        """Write all that a later run needs, in one piece: an interrupted write leaves the state before it."""
        state = {
            "fingerprint": self._fingerprint(),
            "step": self.step,
            "best": self.best,
            "stale": self.stale,
            "first": self.first and self.first.traces,
            "history": self.history,
            "weights": [weight.detach() for weight in self.weights],
            "optimizer": self.optimizer.state_dict(),
        }
        self.out.mkdir(parents=True, exist_ok=True)
        part = self.out / f"{STATE}.part"
        torch.save(state, part)
        os.replace(part, self.out / STATE)

    def load(self) -> None:
        """Go on from the saved state. Raises ValueError if there is none, or if it is of another run."""
        file = self.out / STATE
        if not file.exists():
            raise ValueError(f"{file} does not exist: there is no run to resume")
        state = torch.load(file, weights_only=True, map_location=self.weights[0].device)
        ours, theirs = self._fingerprint(), state["fingerprint"]
        for name in ours:
            if ours[name] != theirs[name]:
                raise ValueError(f"{file} was saved with {name} {theirs[name]}, not {ours[name]}: use another --out")
        for weight, saved in zip(self.weights, state["weights"], strict=True):
            weight.data.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best, self.stale = state["step"], state["best"], state["stale"]
        self.history = state["history"]
        self.first = Run(state["first"], [one.category for one in self.heldout])


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise OSError that says what to do if a file can't be written, whichever library writes it."""
    try:
        yield
    except (RuntimeError, OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise OSError(f"cannot write to {folder} ({reason}): make room on the disk, and go on with --resume") from None


def save_adapter(model: ReferenceModel, folder: Path) -> None:
    """Write the adapter in the released layout, in bf16 as the released ones."""
    lora = next(model.loras())
    write_adapter(folder, lora.scale * lora.lora_A.out_features, model.adapter_weights(torch.bfloat16))


def measure(
    model: ReferenceModel,
    conversations: Sequence[Conversation],
    lora: bool,
    settings: Settings,
    anyone: Callable[[bool], bool] = bool,
) -> Run:
    """Decode answers with the adapter on or off; a trace for each, in their order."""
    by_length = sorted(range(len(conversations)), key=lambda index: len(conversations[index].answer))
    traces: dict[int, list[tuple[int, int, int]]] = {}
    for first in range(0, len(by_length), settings.group):
        indices = by_length[first : first + settings.group]
        group = Group.of(model, [conversations[index] for index in indices])
        traces |= zip(indices, trace(model, group, lora, settings.block_length, anyone), strict=True)
    return Run([traces[index] for index in range(len(conversations))], [one.category for one in conversations])


@contextlib.contextmanager
def checkpointed(model: ReferenceModel) -> Iterator[None]:
    """Keep each layer's input only, and compute the layer again for its gradients."""
    layers = list(model.encoder.layers)
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # type: ignore[method-assign]  # undone below
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own again
