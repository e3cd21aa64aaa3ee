"""A tiny random model in the released layout, for parity tests. It has all features of a real one in 0.2 M parameters.

head_dim is not hidden_size / heads, YaRN and the llama-4 query scale have an effect even on short prompts, and the
weights are large enough that greedy output depends on the prompt and does not loop right away.

    write_tiny_checkpoint(tmp_path)
    model = ReferenceModel.from_pretrained(tmp_path)
"""

import json
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vllm_nld.model.adapter import RELEASED, features, stem
from vllm_nld.model.checkpoint import ADAPTER_DIR, expected_shapes
from vllm_nld.model.configs import NemotronLabsDiffusionConfig, config_class

CONFIG: dict[str, Any] = {
    "architectures": ["NemotronLabsDiffusionModel"],
    "model_type": "nemotron_labs_diffusion",
    "dtype": "float32",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": False,
    "bos_token_id": 1,
    "eos_token_id": 11,
    "pad_token_id": None,
    "mask_token_id": 100,
    "block_size": 32,
    "dlm_paradigm": "bidirectional",
}
ADAPTER_RANK, ADAPTER_ALPHA = 4, 16

# What makes it a vision-language model: an odd vocabulary, and images of up to 6 x 6 cells of 8 x 8 pixels.
VLM: dict[str, Any] = {
    "architectures": ["NemotronLabsDiffusionVLMModel"],
    "model_type": "nemotron_labs_diffusion_vlm",
    "vocab_size": 321,
    "max_image_size": 48,
    "vision_config": {
        "model_type": "pixtral",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 4,
        "image_size": 48,
        "hidden_act": "silu",
        "rope_theta": 1e4,
    },
}


def tiny_raw_config(**overrides: Any) -> dict[str, Any]:
    """config.json as a dict. An override of `rope_parameters` is merged with the default, others replace it."""
    rope = CONFIG["rope_parameters"] | overrides.pop("rope_parameters", {})
    return CONFIG | {"rope_parameters": rope} | overrides


def tiny_config(**overrides: Any) -> NemotronLabsDiffusionConfig:
    """The tiny model's config, see `tiny_raw_config`."""
    raw = tiny_raw_config(**overrides)
    return config_class(raw)(**raw)


def tiny_weights(config: NemotronLabsDiffusionConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors by released name: matrices of unit gain, embeddings of unit variance, norms around one."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in expected_shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            weights[name] = 1 + 0.1 * noise
        elif "embed_tokens" in name:
            weights[name] = noise
        else:
            weights[name] = noise * math.prod(shape[1:]) ** -0.5 * (2.0 if "diffusion_head" in name else 1.5)
    return weights


def tiny_adapter(
    config: NemotronLabsDiffusionConfig, seed: int = 0, targets: Sequence[str] = RELEASED
) -> dict[str, torch.Tensor]:
    """Random draft adapter tensors by PEFT name, strong enough to change drafts."""
    generator = torch.Generator().manual_seed(seed + 1)
    wide, tensors = features(config), {}
    for index, target in product(range(config.num_hidden_layers), targets):
        (inner, outer), name = wide[target], stem(index, target)
        tensors[f"{name}.lora_A.weight"] = torch.randn(ADAPTER_RANK, inner, generator=generator) * inner**-0.5
        tensors[f"{name}.lora_B.weight"] = torch.randn(outer, ADAPTER_RANK, generator=generator) * 0.2
    return tensors


def write_tiny_checkpoint(
    path: Path,
    *,
    adapter: bool = True,
    targets: Sequence[str] = RELEASED,
    tokenizer: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    prefix: str = "",
    **overrides: Any,
) -> Path:
    """Write a checkpoint in the Hugging Face layout to `path`, and return the path.

    adapter: write linear_spec_lora/, for these targets. tokenizer: write a word-level tokenizer (id 17 is "t17") and a
    chat template. prefix: prepended to tensor names, such as "language_model." in converted repositories. overrides:
    config fields.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    raw = tiny_raw_config(**{"dtype": str(dtype).removeprefix("torch.")} | overrides)
    config = config_class(raw)(**raw)
    write_json(path / "config.json", raw)
    write_json(
        path / "generation_config.json",
        {"bos_token_id": raw["bos_token_id"], "eos_token_id": raw["eos_token_id"], "pad_token_id": raw["pad_token_id"]},
    )
    weights = {prefix + name: tensor.to(dtype) for name, tensor in tiny_weights(config, seed).items()}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    if adapter:
        write_adapter(path / ADAPTER_DIR, config, seed, dtype, targets)
    if tokenizer:
        write_tokenizer(path, config)
    return path


def write_adapter(
    path: Path, config: NemotronLabsDiffusionConfig, seed: int, dtype: torch.dtype, targets: Sequence[str]
) -> None:
    """Write linear_spec_lora/ in PEFT's format."""
    path.mkdir(exist_ok=True)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": ADAPTER_RANK,
        "lora_alpha": ADAPTER_ALPHA,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(targets),
    }
    write_json(path / "adapter_config.json", settings)
    tensors = {name: tensor.to(dtype) for name, tensor in tiny_adapter(config, seed, targets).items()}
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})


def write_tokenizer(path: Path, config: NemotronLabsDiffusionConfig) -> None:
    """Write a word-level tokenizer with the family's special tokens at their ids, and a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {0: "<unk>", 1: "<s>", 2: "</s>", 10: "<|im_start|>", 11: "<|im_end|>", 12: "<think>", 13: "</think>"}
    special[config.mask_token_id] = "<|mask|>"
    images = getattr(config, "image_token_ids", {})
    special |= {index: name for name, index in images.items()}
    words = {special.get(index, f"t{index}"): index for index in range(config.vocab_size)}
    for index, word in ((14, "\n"), (15, "user"), (16, "assistant"), (17, "system")):
        words[word] = words.pop(f"t{index}")
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="removed")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token=special[config.eos_token_ids[0]],
        mask_token="<|mask|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>", "<think>", "</think>", *images],
    )
    fast.chat_template = (
        "{% for message in messages %}"
        "<|im_start|> {{ message['role'] }} "
        + (PARTS if images else "{{ message['content'] }}")
        + " <|im_end|> {% endfor %}"
        "{% if add_generation_prompt %}<|im_start|> assistant "
        "<think> {% if not enable_thinking is defined or not enable_thinking %}</think> {% endif %}{% endif %}"
    )
    fast.save_pretrained(path)


# A message's content, as the released vision-language template writes it.
PARTS = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }} {% else %}<|image_start|> {% endif %}{% endfor %}{% endif %}"
)


def write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
