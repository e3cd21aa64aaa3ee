"""The sizes of the released models, of the small checkpoint, and of any other one from its config.json.

SHAPES["8b"].layer_parameters               # weights in one layer's matrices
shape_of("/models/Nemotron-Labs-Diffusion-8B")
"""

import json
from dataclasses import dataclass
from pathlib import Path

from vllm_nld.model.checkpoint import ADAPTER_DIR, read_config
from vllm_nld.nano import checkpoint_path


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's sizes; the defaults are common to the released models."""

    hidden: int
    intermediate: int
    layers: int
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    vocabulary: int = 131072
    rank: int = 128  # rank of the draft adapter

    @property
    def layer_parameters(self) -> int:
        """Number of weights in one layer's matrices."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """Number of weights in all matrices, embedding and draft adapter included."""
        return self.layers * (self.layer_parameters + self.adapter_parameters) + 2 * self.head_parameters

    @property
    def head_parameters(self) -> int:
        """Number of weights in the LM head (the embedding is a lookup, not a product)."""
        return self.vocabulary * self.hidden

    @property
    def kv_values(self) -> int:
        """Number of key and value elements per token and layer."""
        return 2 * self.kv_heads * self.head_dim

    @property
    def adapter_parameters(self) -> int:
        """Number of draft adapter weights per layer."""
        return self.rank * (self.heads * self.head_dim + self.hidden)


SHAPES = {"3b": Shape(3072, 9216, 26), "8b": Shape(4096, 14336, 34), "14b": Shape(5120, 16384, 40)}


def nano() -> Shape:
    """The shipped checkpoint's sizes."""
    return read(checkpoint_path())


def shape_of(model: str) -> Shape:
    """A released model by its size, "8b", the small checkpoint, "nano", or a checkpoint folder.

    Raises ValueError for anything else, and CheckpointError if the folder's config.json is not readable.
    """
    if model in SHAPES:
        return SHAPES[model]
    if model == "nano":
        return nano()
    if not Path(model).is_dir():
        raise ValueError(f"model {model!r} is neither one of {', '.join([*SHAPES, 'nano'])} nor a checkpoint folder")
    return read(Path(model))


def read(folder: Path) -> Shape:
    """A checkpoint's sizes, from its config.json and its draft adapter's."""
    raw, adapter = read_config(folder), folder / ADAPTER_DIR / "adapter_config.json"
    rank = json.loads(adapter.read_text(encoding="utf-8"))["r"] if adapter.exists() else 0
    return Shape(
        raw["hidden_size"],
        raw["intermediate_size"],
        raw["num_hidden_layers"],
        raw["num_attention_heads"],
        raw["num_key_value_heads"],
        raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
        raw["vocab_size"],
        rank,
    )
