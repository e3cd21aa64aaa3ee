"""The draft adapter on disk: a PEFT folder with low-rank matrices for every layer's o_proj.

adapter = find_adapter("/models/NLD-8B", None, "auto")      # None if the checkpoint has none
adapter.scale, adapter.rank                                 # alpha / r, r
adapter.read(layer=3)                                       # A [r, in], B [out, r]
write_adapter(folder, alpha=512, layers=[(A, B), ...])
"""

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_nld.model.checkpoint import ADAPTER_DIR, CheckpointError

if TYPE_CHECKING:
    import torch

REMEDY = "download the folder again, or set draft_lora to 'off'"


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter folder with a valid config; its tensors are read on demand."""

    path: Path
    rank: int
    scale: float

    def __post_init__(self) -> None:
        if self.rank < 1 or not math.isfinite(self.scale) or self.scale == 0:
            raise CheckpointError(f"{self.path} has rank {self.rank} and scale {self.scale}: no effect", REMEDY)

    @property
    def weights(self) -> Path:
        return self.path / "adapter_model.safetensors"

    def read(self, layer: int) -> "tuple[torch.Tensor, torch.Tensor]":
        """A [rank, in] and B [out, rank] for one layer's o_proj. Raises CheckpointError if one is missing."""
        from safetensors import SafetensorError, safe_open

        stem = f"base_model.model.encoder.layers.{layer}.self_attn.o_proj"
        try:
            with safe_open(self.weights, framework="pt") as tensors:
                down, up = (tensors.get_tensor(f"{stem}.lora_{side}.weight") for side in "AB")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.weights} has no readable {stem} ({error})", REMEDY) from None
        return down, up

    def check(self, config: Any) -> None:
        """Raise CheckpointError unless the tensors fit a model's config, by their headers."""
        from safetensors import SafetensorError, safe_open

        inner, expected = config.num_attention_heads * config.head_dim, {}
        for layer in range(config.num_hidden_layers):
            stem = f"base_model.model.encoder.layers.{layer}.self_attn.o_proj"
            expected[f"{stem}.lora_A.weight"] = [self.rank, inner]
            expected[f"{stem}.lora_B.weight"] = [config.hidden_size, self.rank]
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
        rank, alpha, targets = int(raw["r"]), float(raw["lora_alpha"]), list(raw["target_modules"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is not a readable adapter config ({error!r})", REMEDY) from None
    if targets != ["o_proj"]:
        raise CheckpointError(f"{file} has target_modules {targets}", "use an adapter whose only target is o_proj")
    if raw.get("use_dora") or raw.get("bias", "none") != "none":
        raise CheckpointError(f"{file} asks for DoRA or biases", "use a plain LoRA adapter")
    return Adapter(path, rank, alpha / (math.sqrt(rank) if raw.get("use_rslora") else rank))


def write_adapter(
    folder: Path,
    alpha: float,
    layers: "Sequence[tuple[torch.Tensor, torch.Tensor]]",  # A [r, in] and B [out, r] of each layer's o_proj
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
        "r": layers[0][0].shape[0],
        "target_modules": ["o_proj"],
        "task_type": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    tensors = {
        f"base_model.model.encoder.layers.{layer}.self_attn.o_proj.lora_{side}.weight": weight.detach().contiguous()
        for layer, pair in enumerate(layers)
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
