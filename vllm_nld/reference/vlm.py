"""The vision-language model in plain PyTorch: the text model, and what it sees in place of the pads of its prompt.

model = ReferenceVLM.from_pretrained(path)
with model.shown([1, 18, 52, 7], [image]) as prompt:       # 18 becomes the image's tokens
    generate(model, prompt, mode="diffusion", max_new_tokens=64)
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from vllm_nld.model.configs import NemotronLabsDiffusionVLMConfig
from vllm_nld.model.images import Images
from vllm_nld.reference.model import ReferenceModel
from vllm_nld.reference.vision import Projector, VisionTower

if TYPE_CHECKING:
    from PIL.Image import Image


class ReferenceVLM(ReferenceModel):
    """The text model with a vision tower and a projector, under the released checkpoints' tensor names."""

    config_class = NemotronLabsDiffusionVLMConfig
    config: NemotronLabsDiffusionVLMConfig

    def __init__(self, config: NemotronLabsDiffusionVLMConfig) -> None:
        super().__init__(config)
        self.encoder.vision_tower = VisionTower(config.vision_config)
        self.encoder.multi_modal_projector = Projector(config)
        self.seen: tuple[torch.Tensor, torch.Tensor] | None = None  # positions [C] and features [C, hidden]

    def look(self, pixels: torch.Tensor) -> torch.Tensor:  # [3, height, width] -> [C, hidden]
        """An image's features, one for each pad."""
        return self.encoder.multi_modal_projector(self.encoder.vision_tower(pixels[None]), pixels.shape)[0]

    @contextlib.contextmanager
    def shown(self, prompt: Sequence[int], images: "Sequence[Image]") -> Iterator[list[int]]:
        """Put each image's tokens in place of its start token, and show the images to forwards inside the context.

        Positions are the prompt's, so one prompt at a time. Raises ValueError unless there is an image for each start
        token.
        """
        rule = Images.of(self.config)
        if list(prompt).count(rule.start) != len(images):
            raise ValueError(f"{len(images)} images for {list(prompt).count(rule.start)} start tokens in the prompt")
        waiting, tokens, features = iter(images), [], []
        for token in prompt:
            if token != rule.start:
                tokens.append(token)
                continue
            pixels, ids = rule(next(waiting))
            pads = torch.tensor(ids) == rule.pad
            positions = len(tokens) + pads.nonzero().flatten()
            tokens += ids
            with torch.no_grad():
                features.append((positions, self.look(torch.from_numpy(pixels).to(self.diffusion_head.weight.dtype))))
        self.seen = (torch.cat([at for at, _ in features]), torch.cat([row for _, row in features])) if images else None
        try:
            yield tokens
        finally:
            self.seen = None

    def embed(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Embeddings [N, T, hidden], with features at the positions where images were shown."""
        embeddings = super().embed(tokens, positions)
        if self.seen is None:
            return embeddings
        where, features = self.seen
        order = torch.searchsorted(where, positions).clamp(max=len(where) - 1)
        return torch.where((where[order] == positions)[..., None], features[order], embeddings)
