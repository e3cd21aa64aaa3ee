"""The training loop: first the tower learns to see, then nano's stages teach nano's decoder to talk about it.

The tower stands still once it can see, so a step costs what nano's costs.
"""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import torch
from tqdm import tqdm

from vllm_nld.model.checkpoint import ADAPTER_DIR
from vllm_nld.model.images import Images
from vllm_nld.nano import checkpoint_path as nano_path
from vllm_nld.nano.batches import Batch, NoiseMix, collate
from vllm_nld.nano.trainer import DRAFT_MIX, Trainer, initialise, rate
from vllm_nld.nano_vlm.export import start, vlm_config
from vllm_nld.nano_vlm.sight import Sight, label_tokens, look_at, sight_loss, sights
from vllm_nld.nano_vlm.tasks import SIZES, draw_heldout
from vllm_nld.nano_vlm.training import TrainedVLM, batches, encode
from vllm_nld.reference.model import ReferenceModel

PACE = 0.4  # of nano's learning rates, because the decoder is already trained


class VlmTrainer(Trainer):
    """Nano's trainer with a tower and one more stage, which comes first."""

    model: TrainedVLM

    def build(self, config: Any) -> ReferenceModel:
        model = TrainedVLM(config or vlm_config())
        initialise(model)
        if config is None:
            start(model)
        self.rule = Images.of(model.config)
        self.vocabulary = label_tokens(self.tokenizer, self.rule)
        return model

    def build_probe(self) -> Batch:
        """Held-out questions about pictures of one size."""
        held = [asked for asked in draw_heldout(per_category=12) if asked.scene.size == SIZES[0]]
        pairs = [encode(self.tokenizer, self.rule, asked) for asked in held]
        self.probe_pictures = torch.stack([pixels for _, pixels in pairs])
        self.probe_sight = look_at(self.tokenizer, self.rule, [asked.scene for asked in held])
        return collate(random.Random(5), [sample for sample, _ in pairs], DRAFT_MIX)

    def batches(self, seed: int, mix: NoiseMix | None = None, copy_share: float = 0.0) -> Iterator[Batch]:
        """Batches, whose pictures the model sees while it is trained on them. Nano can copy already."""
        for batch, pixels in batches(self.tokenizer, self.rule, seed, self.args.rows, mix):
            self.model.pictures = pixels
            yield batch

    @property
    def stages(self) -> dict[str, int]:
        return {"sight": self.args.sight_steps} | super().stages

    def stream(self) -> Iterator[Sight | Batch]:
        seed = self.args.seed * 1000 + 300 + self.rank
        first = sights(self.tokenizer, self.rule, seed, self.args.cells)
        return itertools.chain(itertools.islice(first, self.args.sight_steps), super().stream())

    def loss(self, step: int, batch: Sight | Batch) -> tuple[torch.Tensor, dict[str, float]]:
        if isinstance(batch, Sight):
            loss, _ = sight_loss(self.model, batch, self.vocabulary)
            return loss, {"sight": loss.item()}
        return super().loss(step - self.args.sight_steps, batch)

    def factor(self, step: int) -> float:
        first = self.args.sight_steps
        if step < first:
            return rate(step, first, first // 2)
        return PACE * rate(step - first, self.steps - first, self.args.decay_steps)

    def add_adapter(self) -> None:
        """Nano's, if the decoder is nano's."""
        if self.model.config.hidden_size == vlm_config().hidden_size:
            self.model.load_adapter(nano_path() / ADAPTER_DIR)
        else:
            super().add_adapter()

    def report(self, step: int, lora: bool = False) -> None:
        """How many pictures are seen right in every cell; then as nano's, on held-out pictures."""
        if step <= self.args.sight_steps:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                loss, right = sight_loss(self.model, self.probe_sight, self.vocabulary)
            share = right.all(-1).float().mean().item()
            tqdm.write(f"step {step}: seen right {share:.2f} loss {loss.item():.4f}")
            return
        shown, self.model.pictures = self.model.pictures, self.probe_pictures
        super().report(step, lora)
        self.model.pictures = shown
