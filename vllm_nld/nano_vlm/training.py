"""Batches of questions about pictures, and the model whose decoder they train.

    for batch, pixels in batches(tokenizer, rule, seed=0, rows=2048):
        model.pictures = pixels                # None: texts alone, which are nano's
        losses(model, batch)

A batch has pictures of one size, one for each conversation, so the tower reads them at once.
"""

import random
from collections.abc import Iterator
from typing import Any

import torch

from vllm_nld.model.images import Images
from vllm_nld.nano.batches import Batch, NoiseMix, collate
from vllm_nld.nano.batches import batches as text_batches
from vllm_nld.nano.tokenizer import EOS
from vllm_nld.nano_vlm.scenes import Question, draw
from vllm_nld.nano_vlm.tasks import SIZES, clear, stream
from vllm_nld.reference.vlm import ReferenceVLM

TEXT_SHARE = 0.2  # of the batches, so that nano's own tasks are not forgotten
Sample = tuple[list[int], list[int]]  # prompt and completion


class TrainedVLM(ReferenceVLM):
    """The reference, whose pads get the features of `pictures`, in order. The tower gets no gradient from here."""

    pictures: torch.Tensor | None = None  # [N, 3, height, width]

    def embed(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Embeddings [N, T, hidden]; a noisy copy has no pads."""
        where = tokens == self.config.image_pad_token_id
        if self.pictures is None or not where.any():
            return super().embed(tokens, positions)
        embeddings = self.encoder.embed_tokens(tokens)
        with torch.no_grad():
            patches = self.encoder.vision_tower(self.pictures)
            features = self.encoder.multi_modal_projector(patches, self.pictures.shape)
        return embeddings.masked_scatter(where.unsqueeze(-1), features.to(embeddings.dtype))


def encode(tokenizer: Any, rule: Images, asked: Question) -> tuple[Sample, torch.Tensor]:
    """Token ids of prompt and completion, as served, and the picture's pixels, [3, height, width]."""
    content = [{"type": "image"}, {"type": "text", "text": asked.request}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    pixels, image = rule(draw(asked.scene))
    ids = tokenizer.encode(text, add_special_tokens=False)
    place = ids.index(rule.start)
    completion = tokenizer.encode(asked.expected, add_special_tokens=False)
    return ([*ids[:place], *image, *ids[place + 1 :]], [*completion, EOS]), torch.from_numpy(pixels)


def picture_batches(
    tokenizer: Any, rule: Images, seed: int, rows: int, mix: NoiseMix
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Endless batches of questions, each of one picture size."""
    rng = random.Random(seed)
    streams = [filter(clear, stream(seed + 1 + index, size)) for index, size in enumerate(SIZES)]
    while True:
        questions, samples, pixels, room = rng.choice(streams), [], [], rows
        while room > 0:
            sample, picture = encode(tokenizer, rule, next(questions))
            samples.append(sample)
            pixels.append(picture)
            room -= len(sample[0]) + 2 * len(sample[1]) + 16
        yield collate(rng, samples, mix), torch.stack(pixels)


def batches(
    tokenizer: Any, rule: Images, seed: int, rows: int, mix: NoiseMix | None = None
) -> Iterator[tuple[Batch, torch.Tensor | None]]:
    """Endless batches of about `rows` tokens: questions about pictures, and nano's texts."""
    mix, rng = mix or NoiseMix(), random.Random(seed)
    texts = text_batches(tokenizer, seed + 50, rows, mix)
    questions = picture_batches(tokenizer, rule, seed + 60, rows, mix)
    while True:
        yield (next(texts), None) if rng.random() < TEXT_SHARE else next(questions)
