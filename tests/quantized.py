"""Checkpoints with quantized weights, in the layout of compressed-tensors."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file


def _int8(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:  # [out, in]
    """A scale for each row. Returns what is stored, by suffix of the name, and what it stands for.

    On CPUs without VNNI the kernel's sums of two products would saturate, so there seven of the eight bits are used.
    """
    most = 127 if torch.cuda.is_available() or torch.cpu._is_vnni_supported() else 63
    scale = weight.abs().amax(dim=1, keepdim=True) / most
    rounded = (weight / scale).round()
    return {"weight": rounded.to(torch.int8), "weight_scale": scale}, rounded * scale


def _int4(weight: torch.Tensor, group: int = 32) -> tuple[dict[str, torch.Tensor], torch.Tensor]:  # [out, in]
    """A scale for each group of a row, eight values in a word. Returns the same."""
    parts = weight.unflatten(1, (-1, group))
    scale = parts.abs().amax(dim=2) / 7
    rounded = (parts / scale[..., None]).round()
    words = (rounded.flatten(1).to(torch.int64) + 8).unflatten(1, (-1, 8)) << torch.arange(0, 32, 4)
    stored = {"weight_packed": words.sum(-1).to(torch.int32), "weight_scale": scale}
    return stored | {"weight_shape": torch.tensor(weight.shape)}, (rounded * scale[..., None]).flatten(1)


def scheme(bits: int) -> dict[str, Any]:
    """The config of compressed-tensors: int8 weights and activations, or int4 weights."""
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False}
    group = {"targets": ["Linear"], "weights": weights | {"strategy": "group", "group_size": 32}}
    if bits == 8:
        activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        group |= {"weights": weights | {"strategy": "channel"}, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if bits == 8 else "pack-quantized",
        "ignore": ["diffusion_head", "re:.*vision_tower.*", "re:.*multi_modal_projector.*"],
        "config_groups": {"group_0": group},
    }


def needs_kernel(bits: int) -> None:
    """Skip a test on a CPU for which vLLM has no kernel: int4 weights need AVX-512."""
    import_module("vllm._custom_ops")  # loads them
    if bits == 4 and not torch.cuda.is_available() and not hasattr(torch.ops._C, "cpu_gemm_wna16"):
        pytest.skip("vLLM has no kernel for int4 weights on a CPU without AVX-512")


def quantize(file: Path, bits: int) -> dict[str, torch.Tensor]:
    """Quantize the projections in a safetensors file, but for those of a vision tower. Returns what they stand for."""
    tensors, weights = {}, {}
    for name, tensor in load_file(file).items():
        stored, weights[name] = {"weight": tensor}, tensor
        if "_proj." in name and "vision" not in name:
            stored, weights[name] = (_int8 if bits == 8 else _int4)(tensor)
        tensors |= {name.removesuffix("weight") + suffix: part.contiguous() for suffix, part in stored.items()}
    save_file(tensors, file)
    return weights
