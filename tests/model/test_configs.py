"""The config classes: AutoConfig finds them, both layouts are equivalent, and contradictions are errors."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from tests.tiny import VLM, tiny_config, tiny_raw_config
from vllm_nld.model.configs import (
    CONFIG_CLASSES,
    MinistralDLMConfig,
    NemotronLabsDiffusionConfig,
    NemotronLabsDiffusionVLMConfig,
    register_configs,
)

MODEL_TYPES = {
    "nemotron_labs_diffusion": NemotronLabsDiffusionConfig,
    "ministral_dlm": MinistralDLMConfig,
    "nemotron_labs_diffusion_vlm": NemotronLabsDiffusionVLMConfig,
}


@pytest.fixture(autouse=True)
def registered() -> None:
    register_configs()
    register_configs()  # idempotent, because vLLM calls plugins more than once per process


def load(folder: Path, raw: dict) -> NemotronLabsDiffusionConfig:
    (folder / "config.json").write_text(json.dumps(raw))
    return AutoConfig.from_pretrained(folder)


def test_every_class_is_covered() -> None:
    assert set(MODEL_TYPES.values()) == set(CONFIG_CLASSES)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_auto_config_round_trip(tmp_path: Path, model_type: str) -> None:
    """No field is lost or changed between config.json and the saved copy."""
    raw = tiny_raw_config(model_type=model_type)
    config = load(tmp_path, raw)
    assert type(config) is MODEL_TYPES[model_type]
    for key, value in raw.items():
        if key == "dtype":
            assert str(config.dtype).removeprefix("torch.") == value
        elif key == "rope_parameters":
            assert value.items() <= config.rope_parameters.items()
        else:
            assert getattr(config, key) == value, key
    config.save_pretrained(tmp_path / "copy")
    again = AutoConfig.from_pretrained(tmp_path / "copy")
    assert again.to_diff_dict() | {"_name_or_path": ""} == config.to_diff_dict() | {"_name_or_path": ""}


@pytest.mark.parametrize("type_key", ["rope_type", "type"])
@pytest.mark.parametrize("model_type", ["nemotron_labs_diffusion", "ministral_dlm"])
def test_legacy_rope_layout(tmp_path: Path, model_type: str, type_key: str) -> None:
    """Top-level rope_theta and rope_scaling are equivalent to rope_parameters."""
    raw = tiny_raw_config(model_type=model_type)
    modern = load(tmp_path, raw)
    rope = raw.pop("rope_parameters")
    theta = rope.pop("rope_theta")
    rope[type_key] = rope.pop("rope_type")
    legacy = load(tmp_path, raw | {"rope_theta": theta, "rope_scaling": rope})
    assert modern.rope_parameters.items() <= legacy.rope_parameters.items()
    assert legacy.llama_4_scaling == modern.llama_4_scaling


@pytest.mark.parametrize(
    ("eos", "expected"), [(11, (11,)), (0, (0,)), ([2, 11], (2, 11)), (None, ())], ids=["id", "zero", "list", "none"]
)
def test_eos_token_ids(eos: int | list[int] | None, expected: tuple[int, ...]) -> None:
    assert tiny_config(eos_token_id=eos).eos_token_ids == expected


def test_head_dim() -> None:
    """The explicit value (32, not 64 / 4), or else the hidden size divided by the number of heads."""
    assert tiny_config().head_dim == 32
    raw = tiny_raw_config()
    del raw["head_dim"]
    assert NemotronLabsDiffusionConfig(**raw).head_dim == 16
    assert tiny_config(head_dim=None).head_dim == 16


def test_llama_4_scaling() -> None:
    assert tiny_config().llama_4_scaling == {"original_max_position_embeddings": 64, "beta": 0.1}
    assert tiny_config(rope_parameters={"llama_4_scaling_beta": 0}).llama_4_scaling is None
    raw = tiny_raw_config()
    del raw["rope_parameters"]["llama_4_scaling_beta"]
    assert NemotronLabsDiffusionConfig(**raw).llama_4_scaling is None


def test_base_factor_below_one() -> None:
    config = tiny_config(rope_parameters={"factor": 0.25, "original_max_position_embeddings": 16384})
    assert config.rope_parameters["factor"] == 0.25


def test_is_causal_is_dropped() -> None:
    """With it, vLLM would take the model for an encoder."""
    assert not hasattr(tiny_config(is_causal=False), "is_causal")


def test_no_warning_about_known_rope_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd) -> None:
    load(tmp_path, tiny_raw_config())
    assert "llama_4_scaling_beta" not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 3}, r"num_attention_heads \(3\) must be a multiple of num_key_value_heads \(2\)"),
        ({"mask_token_id": 320}, r"mask_token_id \(320\) must lie in \[0, vocab_size = 320\)"),
        ({"mask_token_id": -1}, r"mask_token_id \(-1\)"),
        ({"block_size": 1}, r"block_size \(1\) must be at least 2"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu' in config.json, not 'gelu'"),
        ({"attention_bias": True}, "attention_bias and mlp_bias must be false"),
        ({"mlp_bias": True}, "attention_bias and mlp_bias must be false"),
        ({"dlm_paradigm": "autoregressive"}, "dlm_paradigm must be 'bidirectional' in config.json"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_type must be 'default' or 'yarn' in config.json"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_contradictions(tmp_path: Path, model_type: str, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, tiny_raw_config(model_type=model_type, **changes))


def test_vision_config(tmp_path: Path) -> None:
    """The tower's values come from config.json; the numbers of preprocessing, which it lacks, are the released ones."""
    config = load(tmp_path, tiny_raw_config(**VLM))
    assert config.vision_config.to_dict().items() >= {"hidden_size": 32, "patch_size": 4, "hidden_act": "silu"}.items()
    assert config.vision_config.rope_parameters["rope_theta"] == 1e4
    assert config.spatial_merge_size == 2 and config.get_text_config() is config
    config.save_pretrained(tmp_path / "copy")
    assert AutoConfig.from_pretrained(tmp_path / "copy").vision_config.to_dict() == config.vision_config.to_dict()
    released = NemotronLabsDiffusionVLMConfig()
    assert (released.max_image_size, list(released.image_token_ids.values())) == (1400, [18, 19, 20, 21])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_config": {"hidden_size": 34, "num_attention_heads": 4}}, r"vision_config\.hidden_size \(34\)"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act must be 'gelu'"),
        ({"multimodal_projector_bias": True}, "multimodal_projector_bias must be false"),
        ({"max_image_size": 0}, "max_image_size must be a positive integer"),
        ({"spatial_merge_size": 1.5}, "spatial_merge_size must be a positive integer"),
        ({"image_pad_token_id": 18}, "must be four ids below vocab_size 321"),
        ({"image_end_token_id": 321}, "must be four ids below vocab_size 321"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_contradictions_about_images(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(**VLM | changes)


def test_the_text_to_image_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a text-to-image model, and vllm-nld serves language models"):
        load(tmp_path, {"model_type": "nemotron_labs_diffusion_image"})
