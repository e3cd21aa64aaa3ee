"""Teaches the tower and the projector to see: each cell's feature becomes the embedding of the cell's label.

The script that draws a picture knows what stands where, so this needs no decoder, and a step costs a tenth of one with
it. Afterwards the decoder reads a picture as it reads text.

    vocabulary = label_tokens(tokenizer, rule)
    loss, right = sight_loss(model, next(sights(tokenizer, rule, seed=0, cells=2048)), vocabulary)

Letters: N pictures of one size, C cells of a picture, K tokens that are labels.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from vllm_nld.model.images import Images
from vllm_nld.nano_vlm.labels import cell_labels
from vllm_nld.nano_vlm.scenes import COLORS, THINGS, Scene, draw
from vllm_nld.nano_vlm.tasks import SIZES, WORDS, crowd, stream
from vllm_nld.reference.vlm import ReferenceVLM

SHARPNESS = 8.0  # of the choice among labels, in logits for the mean distance between two of them
EMPTY_WEIGHT = 0.2  # most cells are empty, and easy
CROWDS = 0.7  # share of the pictures that are full, because a full one teaches more


@dataclass(frozen=True, slots=True)
class Sight:
    """Pictures of one size and what is in their cells."""

    pixels: torch.Tensor  # [N, 3, height, width] float32
    labels: torch.Tensor  # [N, C] int64


def label_tokens(tokenizer: Any, rule: Images) -> torch.Tensor:  # [K] int64, ascending
    """Every token that can be a label."""
    words = [*COLORS, *THINGS, *WORDS, *"0123456789"]
    return torch.tensor(sorted({rule.pad, *(tokenizer.encode(word, add_special_tokens=False)[0] for word in words)}))


def look_at(tokenizer: Any, rule: Images, scenes: list[Scene]) -> Sight:
    """Scenes of one size as the tower sees them, and their labels."""
    pixels = [torch.from_numpy(rule(draw(scene))[0]) for scene in scenes]
    return Sight(torch.stack(pixels), torch.tensor([cell_labels(tokenizer, rule, scene) for scene in scenes]))


def sights(tokenizer: Any, rule: Images, seed: int, cells: int) -> Iterator[Sight]:
    """Endless batches of about `cells` cells: crowded pictures, and those of training questions."""
    rng = random.Random(seed)
    streams = [(stream(seed + 1 + index, size), size) for index, size in enumerate(SIZES)]
    while True:
        questions, size = rng.choice(streams)
        columns, rows = rule.cells(*size)
        count = max(cells // (columns * rows), 1)
        scenes = [crowd(rng, size) if rng.random() < CROWDS else next(questions).scene for _ in range(count)]
        yield look_at(tokenizer, rule, scenes)


def sight_loss(
    model: ReferenceVLM, sight: Sight, vocabulary: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:  # scalar, [N, C] bool
    """How far each feature is from its label's embedding, compared with other labels'; and which are nearest to it."""
    codes = model.encoder.embed_tokens.weight[vocabulary].detach().float()  # [K, hidden]
    features = model.encoder.multi_modal_projector(model.encoder.vision_tower(sight.pixels), sight.pixels.shape)
    with torch.autocast("cpu", enabled=False):
        features = features.float().flatten(0, 1)
        lengths, products = features.square().sum(-1, keepdim=True), features @ codes.T
        distance = (lengths - 2 * products + codes.square().sum(-1)) / torch.cdist(codes, codes).square().mean()
        labels = torch.searchsorted(vocabulary, sight.labels.flatten())
        losses = F.cross_entropy(-SHARPNESS * distance, labels, reduction="none")
        losses = losses + distance.gather(1, labels[:, None])[:, 0]
        weights = torch.where(sight.labels.flatten() == vocabulary[0], EMPTY_WEIGHT, 1.0)
    right = (distance.argmin(-1) == labels).view(sight.labels.shape)
    return (losses * weights).sum() / weights.sum(), right
