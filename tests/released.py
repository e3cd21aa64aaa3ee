"""The released vision-language model's shape with random weights, and a check that vLLM loads each where it belongs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from bench.shapes import write_vlm
from vllm_nld.model.causal_lm import NemotronLabsDiffusionModel

WEIGHTS = "model.safetensors"
# The weights repeat one buffer, which takes no time. Its length is a prime number, so no two rows or tensors are equal.
PERIOD = 4_194_301
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
RENAMED = {"model": "encoder", "lm_head": "diffusion_head"}


def write_random_vlm(folder: Path, layers: int, tower_layers: int, vocabulary: int) -> Path:
    """Write a random checkpoint with the released hidden sizes and this many layers and words."""
    write_vlm(folder, layers, tower_layers, vocabulary)
    noise = torch.randn(PERIOD, generator=torch.Generator().manual_seed(0)) * 0.02
    data = noise.to(torch.bfloat16).view(torch.int16).numpy().data.cast("B")
    with (folder / WEIGHTS).open("r+b") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")  # the header's length and the header
        left = file.seek(0, 2) - begin
        file.seek(begin)
        while left:
            left -= file.write(data[:left])
    return folder


def sources(parameter: str) -> list[str]:
    """The checkpoint's names of the tensors that one of vLLM's parameters consists of, from the first row on."""
    module, _, rest = parameter.partition(".")
    name = f"{RENAMED.get(module, f'encoder.{module}')}.{rest}"
    for fused, parts in FUSED.items():
        if f".{fused}." in name:
            return [name.replace(fused, part) for part in parts]
    return [name]


def assert_loaded(model: torch.nn.Module, folder: Path) -> None:
    """Each parameter has the values of the tensors that it consists of, and nothing of the checkpoint is left over."""
    used = []
    with safe_open(folder / WEIGHTS, framework="pt") as tensors:
        for name, parameter in model.named_parameters():
            end = 0
            for source in sources(name):
                part = tensors.get_tensor(source)
                begin, end = end, end + len(part)
                assert torch.equal(parameter[begin:end], part), f"{name}[{begin}:{end}] is not {source}"
                used.append(source)
            assert not parameter[end:].any(), f"{name} has values beyond those of the checkpoint"
        assert sorted(used) == sorted(tensors.keys())


def check_loading(patch: pytest.MonkeyPatch, folder: Path) -> list[Any]:
    """Compare weights with the checkpoint's once vLLM has loaded them: kernels for CPUs repack them soon after.

    Returns a list of the models that were compared.
    """
    compared: list[Any] = []
    load = NemotronLabsDiffusionModel.load_weights

    def load_weights(self: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        loaded = load(self, weights)
        assert_loaded(self, folder)
        compared.append(self)
        return loaded

    patch.setattr(NemotronLabsDiffusionModel, "load_weights", load_weights)
    return compared
