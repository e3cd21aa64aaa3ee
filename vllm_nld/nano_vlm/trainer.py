"""The training loop: nano's, on batches with pictures, from nano's weights."""

import random
from collections.abc import Iterator
from typing import Any

from vllm_nld.model.images import Images
from vllm_nld.nano.batches import Batch, NoiseMix, collate
from vllm_nld.nano.trainer import DRAFT_MIX, Trainer, initialise
from vllm_nld.nano_vlm.export import start, vlm_config
from vllm_nld.nano_vlm.tasks import SIZES, draw_heldout
from vllm_nld.nano_vlm.training import TrainedVLM, batches, encode
from vllm_nld.reference.model import ReferenceModel


class VlmTrainer(Trainer):
    """Nano's trainer with a tower."""

    model: TrainedVLM

    def build(self, config: Any) -> ReferenceModel:
        model = TrainedVLM(config or vlm_config())
        initialise(model)
        if config is None:
            start(model)
        return model

    def build_probe(self) -> Batch:
        """Held-out questions about pictures of one size."""
        import torch

        held = [asked for asked in draw_heldout(per_category=12) if asked.scene.size == SIZES[0]]
        pairs = [encode(self.tokenizer, Images.of(self.model.config), asked) for asked in held]
        self.probe_pictures = torch.stack([pixels for _, pixels in pairs])
        return collate(random.Random(5), [sample for sample, _ in pairs], DRAFT_MIX)

    def batches(self, seed: int, mix: NoiseMix | None = None, copy_share: float = 0.0) -> Iterator[Batch]:
        """Batches, whose pictures the model sees while it is trained on them. Nano can copy already."""
        rule = Images.of(self.model.config)
        for batch, pixels in batches(self.tokenizer, rule, seed, self.args.rows, mix, turns=seed - self.rank):
            self.model.pictures = pixels
            yield batch

    def report(self, step: int, lora: bool = False) -> None:
        """As nano's, on held-out pictures."""
        shown, self.model.pictures = self.model.pictures, self.probe_pictures
        super().report(step, lora)
        self.model.pictures = shown
