"""Checkpoint checks read only headers. Errors name the file or tensor and the fix."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.shapes import write_vlm
from tests.tiny import VLM, tiny_config, tiny_raw_config, write_tiny_checkpoint
from vllm_nld.model.checkpoint import (
    ADAPTER_DIR,
    REQUIRED_CONFIG_KEYS,
    CheckpointError,
    canonical_name,
    check_tensors,
    expected_shapes,
    read_config,
    read_shapes,
    weight_files,
)
from vllm_nld.model.configs import NemotronLabsDiffusionVLMConfig, config_class
from vllm_nld.reference import ReferenceModel


def check(path: Path, quantized: bool = False) -> None:
    """The start-up check of a checkpoint folder."""
    raw = read_config(path)
    config = config_class(raw)(**raw)
    check_tensors(config, read_shapes(path), where=path, quantized=quantized)


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


@pytest.mark.parametrize("prefix", ["", "language_model."])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_good_checkpoint_passes(tmp_path: Path, prefix: str, tied: bool) -> None:
    write_tiny_checkpoint(tmp_path, prefix=prefix, tie_word_embeddings=tied)
    check(tmp_path)
    assert read_shapes(tmp_path) == expected_shapes(tiny_config(tie_word_embeddings=tied))


def test_released_vision_language_model() -> None:
    """As many tensors and parameters as the released one, 218 of them in the tower."""
    shapes = expected_shapes(NemotronLabsDiffusionVLMConfig())
    assert len(shapes) == 531
    assert sum(name.startswith("encoder.vision_tower.") for name in shapes) == 218
    assert sum(map(math.prod, shapes.values())) == pytest.approx(8.92e9, rel=1e-3)


def test_every_released_tensor_is_checked(tmp_path: Path) -> None:
    """The released shapes with two layers each: every tensor must be there, with its shape, and no other beside it."""
    write_vlm(tmp_path, layers=2, tower_layers=2)
    config, shapes = NemotronLabsDiffusionVLMConfig(**read_config(tmp_path)), read_shapes(tmp_path)
    check_tensors(config, shapes, where=tmp_path)
    assert len(shapes) == 3 + 2 * 9 + 2 + 2 * 9 + 4
    for name, (rows, *rest) in shapes.items():
        wider = (rows + 1, *rest)
        for changed, message in (
            ({one: shape for one, shape in shapes.items() if one != name}, f"lacks 1 tensor(s), the first {name}"),
            (shapes | {name: wider}, f"{name} in {tmp_path} has shape {list(wider)}, but config.json asks for"),
            (shapes | {f"{name}_": wider}, f"has the tensor {name}_, which the model does not know"),
        ):
            with pytest.raises(CheckpointError, match=re.escape(message)):
                check_tensors(config, changed, where=tmp_path)


@pytest.mark.parametrize("prefix", ["encoder.", "", "model."])
def test_vision_tensors_are_checked(tmp_path: Path, prefix: str) -> None:
    """Under released and converted names. One that is missing, or of another shape, is named."""
    path = write_tiny_checkpoint(tmp_path, **VLM)

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "vision" in name or "multi_modal" in name]:
            tensors[prefix + name.removeprefix("encoder.")] = tensors.pop(name)

    edit_weights(path, rename)
    check(path)
    edit_weights(path, lambda tensors: tensors.update({f"{prefix}vision_tower.ln_pre.weight": torch.ones(33)}))
    with pytest.raises(CheckpointError, match=r"encoder\.vision_tower\.ln_pre\.weight .*\[33\].*\[32\]"):
        check(path)
    edit_weights(path, lambda tensors: tensors.pop(f"{prefix}vision_tower.ln_pre.weight"))
    with pytest.raises(CheckpointError, match=r"lacks 1 tensor\(s\), the first encoder\.vision_tower\.ln_pre"):
        check(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoder.norm.weight", "encoder.norm.weight"),
        ("diffusion_head.weight", "diffusion_head.weight"),
        ("language_model.encoder.norm.weight", "encoder.norm.weight"),
        ("language_model.model.norm.weight", "encoder.norm.weight"),
        ("language_model.lm_head.weight", "diffusion_head.weight"),
        ("model.layers.0.mlp.up_proj.weight", "encoder.layers.0.mlp.up_proj.weight"),
        ("lm_head.weight", "diffusion_head.weight"),
    ],
)
def test_canonical_name(name: str, expected: str) -> None:
    assert canonical_name(name) == expected
    assert canonical_name(expected) == expected


def test_converted_names(tmp_path: Path) -> None:
    """Converted names, language_model.model.* and language_model.lm_head, load the same weights."""
    path = write_tiny_checkpoint(tmp_path)
    before = ReferenceModel.from_pretrained(path).state_dict()

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            converted = name.replace("encoder.", "model.").replace("diffusion_head", "lm_head")
            tensors[f"language_model.{converted}"] = tensors.pop(name)

    edit_weights(path, rename)
    after = ReferenceModel.from_pretrained(path).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_adapter_is_not_mistaken_for_weights(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path, adapter=True)
    assert weight_files(path) == [path / "model.safetensors"]
    assert not any("lora" in name for name in read_shapes(path))


def test_adapter_tensors_among_the_weights_are_refused(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path)
    (path / ADAPTER_DIR / "adapter_model.safetensors").rename(path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"lora_A.*adapters belong in a subfolder"):
        check(path)


def test_shards(tmp_path: Path) -> None:
    """Two files and an index. Files that are not in the index are ignored."""
    path = write_tiny_checkpoint(tmp_path)
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, path / file)
    save_file({"stray": torch.zeros(1)}, path / "other.safetensors")
    weight_map = {name: file for file, part in parts.items() for name in part}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    check(path)
    ReferenceModel.from_pretrained(path)
    (path / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors is named in .* but absent.*download it again"):
        check(path)


def pickle_only(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def truncate(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def misshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["encoder.layers.1.self_attn.q_proj.weight"] = torch.zeros(64, 64)  # as if head_dim were hidden / heads


BREAKAGES = {
    "missing-tensor": (
        lambda path: edit_weights(path, lambda tensors: tensors.pop("encoder.layers.1.mlp.up_proj.weight")),
        ["lacks 1 tensor", "encoder.layers.1.mlp.up_proj.weight", "download the checkpoint again"],
    ),
    "missing-head": (
        lambda path: edit_weights(path, lambda tensors: tensors.pop("diffusion_head.weight")),
        ["lacks 1 tensor", "diffusion_head.weight", "download"],
    ),
    "extra-tensor": (
        lambda path: edit_weights(path, lambda tensors: tensors.update({"encoder.layers.2.x": torch.zeros(1)})),
        ["encoder.layers.2.x", "check architectures and num_hidden_layers in config.json"],
    ),
    "misshapen-tensor": (
        lambda path: edit_weights(path, misshape),
        ["encoder.layers.1.self_attn.q_proj.weight", "[64, 64]", "[128, 64]", "belong to different models"],
    ),
    "pickle-only": (pickle_only, ["pytorch_model.bin is a pickle file", "convert the weights to safetensors"]),
    "no-weights": (lambda path: (path / "model.safetensors").unlink(), ["holds no *.safetensors", "download"]),
    "truncated": (truncate, ["model.safetensors is damaged", "download it again"]),
    "garbage": (
        lambda path: (path / "model.safetensors").write_bytes(b"\xff" * 64),
        ["model.safetensors is damaged", "download it again"],
    ),
    "empty-file": (
        lambda path: (path / "model.safetensors").write_bytes(b""),
        ["model.safetensors is damaged", "download it again"],
    ),
    "bad-index": (
        lambda path: (path / "model.safetensors.index.json").write_text('{"weights": {}}'),
        ["model.safetensors.index.json is damaged", "download it again"],
    ),
    "no-config": (lambda path: (path / "config.json").unlink(), ["config.json does not exist", "Hugging Face layout"]),
    "bad-config": (lambda path: (path / "config.json").write_text("{,"), ["config.json is not valid JSON", "download"]),
    "binary-config": (
        lambda path: (path / "config.json").write_bytes(b"\xff\xfe\x00"),
        ["config.json is not valid JSON", "download"],
    ),
}


@pytest.mark.parametrize("name", BREAKAGES)
@pytest.mark.parametrize("reader", [check, ReferenceModel.from_pretrained], ids=["check", "reference"])
def test_broken_checkpoint_is_refused(tmp_path: Path, name: str, reader: Callable[[Path], object]) -> None:
    """Each message names the file or tensor and the fix."""
    path = write_tiny_checkpoint(tmp_path)
    damage, parts = BREAKAGES[name]
    damage(path)
    with pytest.raises(CheckpointError, match=".*".join(re.escape(part) for part in parts)):
        reader(path)


@pytest.mark.parametrize("key", [*REQUIRED_CONFIG_KEYS, "rope_parameters"])
def test_missing_config_key_is_named(tmp_path: Path, key: str) -> None:
    raw = tiny_raw_config()
    del raw[key]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(
        CheckpointError, match=rf"config\.json lacks {key}.*take config\.json from the model's own repository"
    ):
        read_config(tmp_path)


def test_all_missing_keys_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        read_config(tmp_path)
    assert all(key in str(caught.value) for key in [*REQUIRED_CONFIG_KEYS, "rope_parameters.rope_theta"])


def test_legacy_rope_theta_is_enough(tmp_path: Path) -> None:
    raw = tiny_raw_config()
    rope = raw.pop("rope_parameters")
    raw |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert read_config(tmp_path)["rope_theta"] == 1e6


def test_quantized_checkpoint_is_checked_by_module(tmp_path: Path) -> None:
    """Packed weights have different shapes and additional scales. A missing module is still detected."""
    path = write_tiny_checkpoint(tmp_path)
    module = "encoder.layers.0.mlp.up_proj"

    def pack(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{module}.weight"]
        tensors |= {f"{module}.weight_packed": torch.zeros(8, 8), f"{module}.weight_scale": torch.ones(128, 1)}

    edit_weights(path, pack)
    check(path, quantized=True)
    with pytest.raises(CheckpointError):
        check(path, quantized=False)
    edit_weights(path, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(module)])
    with pytest.raises(CheckpointError, match=module):
        check(path, quantized=True)
