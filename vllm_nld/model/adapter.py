"""The draft adapter on disk: a PEFT folder with low-rank matrices for some projections of every layer.

The released adapters have one target, o_proj.

adapter = find_adapter("/models/NLD-8B", None, "auto")      # None if the checkpoint has none
adapter.scale, adapter.rank, adapter.targets                # alpha / r, r, ("o_proj",)
adapter.read(layer=3, target="o_proj")                      # A [r, in], B [out, r]
write_adapter(folder, alpha=512, layers=[{"o_proj": (A, B)}, ...])
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_nld.model.checkpoint import ADAPTER_DIR, CheckpointError

if TYPE_CHECKING:
    import torch

REMEDY = "download the folder again, or set draft_lora to 'off'"
TARGETS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), "self_attn"),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp"),
}  # the projections that may have an adapter, and their modules
RELEASED = ("o_proj",)


def stem(layer: int, target: str) -> str:
    """What the names of a target's two tensors begin with."""
    return f"base_model.model.encoder.layers.{layer}.{TARGETS[target]}.{target}"


def features(config: Any) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each projection in a model with this config."""
    queries, keys = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    return sizes(config.hidden_size, config.intermediate_size, queries, keys)


def sizes(hidden: int, inner: int, queries: int, keys: int) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each projection. inner: of the MLP. queries, keys: of all their heads."""
    attention = {"q_proj": (hidden, queries), "k_proj": (hidden, keys), "v_proj": (hidden, keys)}
    mlp = {"gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)}
    return {**attention, "o_proj": (queries, hidden), **mlp}


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter folder with a valid config; its tensors are read on demand."""

    path: Path
    rank: int
    scale: float
    targets: tuple[str, ...] = RELEASED

    def __post_init__(self) -> None:
        if self.rank < 1 or not math.isfinite(self.scale) or self.scale == 0:
            raise CheckpointError(f"{self.path} has rank {self.rank} and scale {self.scale}: no effect", REMEDY)

    @property
    def weights(self) -> Path:
        return self.path / "adapter_model.safetensors"

    def read(self, layer: int, target: str) -> "tuple[torch.Tensor, torch.Tensor]":
        """A [rank, in] and B [out, rank] of one layer's projection. Raises CheckpointError if one is missing."""
        from safetensors import SafetensorError, safe_open

        name = stem(layer, target)
        try:
            with safe_open(self.weights, framework="pt") as tensors:
                down, up = (tensors.get_tensor(f"{name}.lora_{side}.weight") for side in "AB")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.weights} has no readable {name} ({error})", REMEDY) from None
        return down, up

    def check(self, config: Any) -> None:
        """Raise CheckpointError unless the tensors fit a model's config, by their headers."""
        from safetensors import SafetensorError, safe_open

        wide, expected = features(config), {}
        for layer, target in product(range(config.num_hidden_layers), self.targets):
            expected[f"{stem(layer, target)}.lora_A.weight"] = [self.rank, wide[target][0]]
            expected[f"{stem(layer, target)}.lora_B.weight"] = [wide[target][1], self.rank]
        try:
            with safe_open(self.weights, framework="pt") as tensors:
                found = {name: list(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 - a safetensors handle is not a dict
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.weights} is not a readable draft adapter ({error})", REMEDY) from None
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                wanted, got = expected.get(name, "nothing"), found.get(name, "nothing")
                raise CheckpointError(f"{name} in {self.weights} must have shape {wanted}, found {got}", REMEDY)


def open_adapter(path: Path) -> Adapter:
    """Read adapter_config.json. Raises CheckpointError for a missing file or an adapter of another kind."""
    file = path / "adapter_config.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        rank, alpha, named = int(raw["r"]), float(raw["lora_alpha"]), list(raw["target_modules"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is not a readable adapter config ({error!r})", REMEDY) from None
    targets = tuple(target for target in TARGETS if target in named)
    if not named or len(targets) != len(named):
        raise CheckpointError(f"{file} has target_modules {named}", f"use an adapter of {', '.join(TARGETS)}")
    if raw.get("use_dora") or raw.get("bias", "none") != "none":
        raise CheckpointError(f"{file} asks for DoRA or biases", "use a plain LoRA adapter")
    if raw.get("rank_pattern") or raw.get("alpha_pattern"):
        raise CheckpointError(f"{file} has a rank_pattern or alpha_pattern", "use an adapter of one rank and alpha")
    return Adapter(path, rank, alpha / (math.sqrt(rank) if raw.get("use_rslora") else rank), targets)


def write_adapter(
    folder: Path,
    alpha: float,
    layers: "Sequence[Mapping[str, tuple[torch.Tensor, torch.Tensor]]]",  # A [r, in] and B [out, r] by target
) -> None:
    """Write a folder in the released layout, in the tensors' precision. A write that fails keeps the weights before."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": round(alpha),
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": next(iter(layers[0].values()))[0].shape[0],
        "target_modules": list(layers[0]),
        "task_type": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    tensors = {
        f"{stem(layer, target)}.lora_{side}.weight": weight.detach().contiguous()
        for layer, pairs in enumerate(layers)
        for target, pair in pairs.items()
        for side, weight in zip("AB", pair, strict=True)
    }
    part = folder / "adapter_model.safetensors.part"
    save_file(tensors, part, metadata={"format": "pt"})
    os.replace(part, folder / "adapter_model.safetensors")


def find_adapter(model: str, revision: str | None, wanted: str) -> Adapter | None:
    """The adapter that `draft_lora` names: the checkpoint's own ("auto"), none ("off"), or another one.

    model: a folder, or a Hugging Face repository, from which only the adapter's folder is downloaded.
    wanted: an adapter's folder, or a checkpoint, again a folder or a repository, that has one.
    Raises CheckpointError if there is no adapter where one was named, or the checkpoint's own one is damaged.
    """
    if wanted == "off":
        return None
    if wanted == "auto":
        folder = Path(model) if Path(model).is_dir() else download(model, revision)
        return open_adapter(folder / ADAPTER_DIR) if (folder / ADAPTER_DIR).is_dir() else None
    folder = Path(wanted)
    if not folder.is_dir() and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", wanted):
        try:
            folder = download(wanted, None)
        except (
            OSError,
            ValueError,
        ) as error:  # what huggingface_hub raises if there is no such repository, or no network
            raise CheckpointError(
                f"draft_lora {wanted!r} is no folder and cannot be downloaded ({error})", "name a folder, or set 'off'"
            ) from None
    return open_adapter(folder / ADAPTER_DIR if (folder / ADAPTER_DIR).is_dir() else folder)


def download(repository: str, revision: str | None) -> Path:
    """The folder of a Hugging Face repository, with its draft adapter if it has one, and nothing else."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, revision=revision, allow_patterns=[f"{ADAPTER_DIR}/*"]))
