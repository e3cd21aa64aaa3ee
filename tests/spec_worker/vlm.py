"""Requests with images for the tiny vision-language model, and what the reference answers."""

from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from tests.pictures import picture
from tests.tiny import VLM
from vllm_nld.reference import Generation, generate
from vllm_nld.reference.vlm import ReferenceVLM

START, WORDS = 18, [token for token in range(22, VLM["vocab_size"]) if token != 100]
SIZES = [(20, 30), (48, 48), (7, 90), (33, 12), (1, 1), (64, 40)]
PICTURES = [picture(*size, seed=seed) for seed, size in enumerate(SIZES)]
ASKED: list[dict[str, Any]] = [
    {"nld_mode": "ar"},
    {"nld_mode": "linear"},
    {"nld_mode": "linear", "nld_tree_nodes": 12},
    {"nld_mode": "linear", "nld_draft_threshold": 0.5},
    {"nld_mode": "diffusion", "nld_threshold": 0.5},
    {"nld_mode": "diffusion", "nld_threshold": 0.9},
    {"nld_mode": "quadratic"},
    {},
]


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt with a start token for each image, and the request's fields."""

    prompt: list[int]
    images: list[Image.Image]
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, Any]:
        """The engine's input."""
        images = {"multi_modal_data": {"image": self.images}} if self.images else {}
        return {"prompt_token_ids": self.prompt} | images

    def exact(self, model: ReferenceVLM, block_length: int, max_tokens: int) -> Generation:
        """What the reference answers. Every mode but diffusion answers as AR decoding does."""
        mode = self.extra.get("nld_mode", "linear")
        options = {"threshold": self.extra["nld_threshold"]} if mode == "diffusion" else {}
        with model.shown(self.prompt, self.images) as tokens:
            return generate(
                model,
                tokens,
                mode="diffusion" if mode == "diffusion" else "ar",
                max_new_tokens=max_tokens,
                block_length=block_length,
                ignore_eos=True,
                **options,
            )


def asks(count: int, seed: int = 0) -> list[Ask]:
    """Requests with zero to three images; many begin alike. All modes take turns."""
    generator, found = torch.Generator().manual_seed(seed), []
    for index in range(count):
        prompt, images = [1], []
        for place in range(index % 4):
            images.append(PICTURES[(index // 4 + place) % len(PICTURES)])
            prompt += [START, WORDS[place]]
        words = torch.randint(len(WORDS), (1 + index % 9,), generator=generator)
        found.append(Ask(prompt + [WORDS[word] for word in words.tolist()], images, ASKED[index % len(ASKED)]))
    return found


def run(llm: Any, asked: list[Ask], max_tokens: int, **options: Any) -> list[Any]:
    """The engine's greedy completions."""
    from vllm import SamplingParams

    params = [
        SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False, extra_args=ask.extra)
        for ask in asked
    ]
    outputs = llm.generate([ask.inputs for ask in asked], params, use_tqdm=False, **options)
    return [output.outputs[0] for output in outputs]
