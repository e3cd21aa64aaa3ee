"""The shipped checkpoint folder: released layout, sizes, adapter, and a card that says what is measured."""

import json
import re

import pytest
from safetensors import safe_open
from transformers import AutoConfig

from vllm_nld.model.checkpoint import ADAPTER_DIR, check_tensors, read_config, read_shapes
from vllm_nld.model.configs import NemotronLabsDiffusionConfig, register_configs
from vllm_nld.nano import checkpoint_path, heldout
from vllm_nld.nano.card import card_table
from vllm_nld.nano.evaluate import choose
from vllm_nld.nano.export import CONFIG

PATH = checkpoint_path()


def test_config_states_every_released_field():
    raw = read_config(PATH)
    assert raw == CONFIG
    rope = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings", "beta_fast", "beta_slow"}
    assert rope | {"mscale", "mscale_all_dim", "llama_4_scaling_beta"} == set(raw["rope_parameters"])
    assert raw["architectures"] == ["NemotronLabsDiffusionModel"]
    assert "auto_map" not in raw
    register_configs()
    config = AutoConfig.from_pretrained(PATH)
    assert isinstance(config, NemotronLabsDiffusionConfig)
    assert (config.mask_token_id, config.block_size, config.dlm_paradigm) == (100, 32, "bidirectional")
    assert config.eos_token_ids == (11,)


def test_tensors_are_the_released_ones_in_bf16():
    check_tensors(NemotronLabsDiffusionConfig(**read_config(PATH)), read_shapes(PATH), where=PATH)
    with safe_open(PATH / "model.safetensors", framework="pt") as tensors:
        names = list(tensors.keys())
        assert {tensors.get_slice(name).get_dtype() for name in names} == {"BF16"}


def test_adapter_is_a_peft_folder_for_o_proj():
    folder = PATH / ADAPTER_DIR
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["o_proj"]
    assert settings["peft_type"] == "LORA"
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as tensors:
        names = list(tensors.keys())
        shapes = {name: tensors.get_slice(name).get_shape() for name in names}
    layers = range(CONFIG["num_hidden_layers"])
    stem = "base_model.model.encoder.layers.{}.self_attn.o_proj.lora_{}.weight"
    assert set(shapes) == {stem.format(layer, side) for layer in layers for side in "AB"}
    assert shapes[stem.format(0, "A")] == [settings["r"], 256]
    assert shapes[stem.format(0, "B")] == [256, settings["r"]]


def test_the_folder_is_small_and_complete():
    names = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert names | {"model.safetensors", "README.md", "loss.png"} <= {file.name for file in PATH.iterdir()}
    assert sum(file.stat().st_size for file in PATH.rglob("*") if file.is_file()) < 25e6
    assert json.loads((PATH / "generation_config.json").read_text())["eos_token_id"] == 11


@pytest.fixture(scope="module")
def card():
    """Mode to its row of the card's first table."""
    rows = re.findall(
        r"^\| (\S.*?) \| ([\d.]+)% \| (\S+) \| ([\d.]+) \|", card_table((PATH / "README.md").read_text()), re.M
    )
    if not rows:
        pytest.skip("the card has no figures yet: run `vllm-nld nano eval --card`")
    return {name: (float(exact), length, float(tpf)) for name, exact, length, tpf in rows}


def test_answers_are_right(card):
    assert card["ar"][0] >= 85
    assert card["diffusion"][0] >= 60


def test_drafting_pays(card):
    assert float(card["linear"][1]) > 6
    assert card["linear"][2] > 2 * card["ar"][2]
    assert card["quadratic"][2] > 2 * card["ar"][2]
    assert card["diffusion"][2] > 1.2 * card["ar"][2]


def test_linear_and_quadratic_are_as_exact_as_ar(card):
    assert card["linear"][0] == card["linear without LoRA"][0] == card["quadratic"][0] == card["ar"][0]


def test_a_few_prompts_measured_again_agree_with_the_card(card):
    from transformers import AutoTokenizer

    from vllm_nld.nano.measure import RUNS, measure
    from vllm_nld.reference import ReferenceModel

    model = ReferenceModel.from_pretrained(PATH)
    figures = measure(model, AutoTokenizer.from_pretrained(PATH), choose(heldout(), 12), RUNS[:2])
    for name, run in figures.items():
        assert abs(100 * run.exact - card[name][0]) < 30
    assert 0.6 < figures["linear"].tpf / card["linear"][2] < 1.6
