"""The settings of a generation, validated before the first forward."""

from dataclasses import dataclass

import torch

from vllm_nld.model.configs import NemotronLabsDiffusionConfig

DEFAULT_THRESHOLD = {"ar": 0.0, "diffusion": 0.9, "linear": 0.0, "quadratic": 0.0}
MODES = tuple(DEFAULT_THRESHOLD)


@dataclass(frozen=True, slots=True)
class Settings:
    """The parameters that a decoding loop reads; see `generate` for their meaning.

    Raises ValueError if one is out of range.
    """

    block_length: int
    threshold: float
    temperature: float = 0.0
    generator: torch.Generator | None = None
    lora: bool = True
    verifier_mix: float = 1.0
    tree_nodes: int = 0
    groups: int = 0

    def __post_init__(self) -> None:
        if self.block_length < 2:
            raise ValueError(f"block_length must be at least 2 (the anchor and one draft), not {self.block_length}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], not {self.threshold}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be at least 0 and finite, not {self.temperature}")
        if not 0 <= self.verifier_mix <= 1:
            raise ValueError(f"verifier_mix must lie in [0, 1], not {self.verifier_mix}")
        if self.tree_nodes < 0:
            raise ValueError(f"tree_nodes must be at least 0, not {self.tree_nodes}")
        if not 0 <= self.groups <= self.block_length:
            raise ValueError(
                f"groups must lie in [0, {self.block_length}], one for each token of a block, not {self.groups}"
            )
        if 0 < self.groups < self.block_length and self.verifier_mix != 1:
            raise ValueError(
                f"verifier_mix {self.verifier_mix} needs the diffusion pathway after every draft: set groups to 0"
            )
        if self.tree_nodes and self.threshold:
            raise ValueError(
                f"tree_nodes {self.tree_nodes} needs threshold 0, not {self.threshold}: a tree takes one pass"
            )


def check_request(
    config: NemotronLabsDiffusionConfig,
    mode: str,
    prompt: list[int],
    max_new_tokens: int,
    special_ids: dict[str, int],  # parameter name to token id
) -> None:
    """Raise ValueError if the mode is unknown, or the prompt, the lengths or a token id don't fit the model."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if not prompt:
        raise ValueError("the prompt is empty: it needs at least one token")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    for index, token in enumerate(prompt):
        if not 0 <= token < config.vocab_size:
            raise ValueError(f"prompt token {index} is {token}, outside the vocabulary [0, {config.vocab_size})")
    for name, token in special_ids.items():
        if not 0 <= token < config.vocab_size:
            raise ValueError(f"{name} is {token}, outside the vocabulary [0, {config.vocab_size})")
    if len(prompt) + max_new_tokens > config.max_position_embeddings:
        raise ValueError(
            f"{len(prompt)} prompt tokens plus max_new_tokens {max_new_tokens} exceed the model's "
            f"max_position_embeddings ({config.max_position_embeddings}): shorten the prompt or lower max_new_tokens"
        )
