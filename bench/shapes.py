"""Models with the released shapes and as many layers as fit, to measure costs: their weights are random.

    write(folder, SHAPES["8b"], layers=2)       # config, weight file headers, a random draft adapter
    LLM(str(folder), load_format="dummy", skip_tokenizer_init=True)

The weight file is only a header: its data is a sparse hole that takes no disk space and is never read.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm_nld.model.checkpoint import ADAPTER_DIR
from vllm_nld.roofline.shapes import SHAPES, Shape


def write_vlm(folder: Path, layers: int, tower_layers: int, vocabulary: int = 131073) -> Path:
    """Write the released vision-language model with fewer layers, or words. It comes without an adapter."""
    from vllm_nld.model.checkpoint import expected_shapes
    from vllm_nld.model.configs import RELEASED_TOWER, VLM_ARCHITECTURE, NemotronLabsDiffusionVLMConfig

    raw = config(replace(SHAPES["8b"], vocabulary=vocabulary), layers)
    raw |= {"architectures": [VLM_ARCHITECTURE], "model_type": NemotronLabsDiffusionVLMConfig.model_type}
    raw["vision_config"] = RELEASED_TOWER | {"model_type": "pixtral", "num_hidden_layers": tower_layers}
    write_json(folder / "config.json", raw)
    write_header(folder / "model.safetensors", expected_shapes(NemotronLabsDiffusionVLMConfig(**raw)))
    return folder


def write(folder: Path, shape: Shape, layers: int) -> Path:
    """Write such a model in the Hugging Face layout, in bfloat16; returns the folder."""
    import torch
    from safetensors.torch import save_file

    from vllm_nld.model.checkpoint import expected_shapes
    from vllm_nld.model.configs import NemotronLabsDiffusionConfig

    raw = config(shape, layers)
    write_json(folder / "config.json", raw)
    write_header(folder / "model.safetensors", expected_shapes(NemotronLabsDiffusionConfig(**raw)))
    adapter = folder / ADAPTER_DIR
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": shape.rank, "lora_alpha": 4 * shape.rank, "target_modules": ["o_proj"]}
    write_json(adapter / "adapter_config.json", settings)
    tensors, generator = {}, torch.Generator().manual_seed(0)
    for index in range(layers):
        stem = f"base_model.model.encoder.layers.{index}.self_attn.o_proj"
        for side, size in (("A", (shape.rank, shape.heads * shape.head_dim)), ("B", (shape.hidden, shape.rank))):
            noise = torch.randn(size, generator=generator) * size[1] ** -0.5
            tensors[f"{stem}.lora_{side}.weight"] = noise.to(torch.bfloat16)
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def write_stock(folder: Path, shape: Shape, layers: int) -> Path:
    """Write the config of a model with the same layers that vLLM serves without this plugin."""
    raw = config(shape, layers)
    rope = raw["rope_parameters"]
    scaling = {"original_max_position_embeddings": rope["original_max_position_embeddings"]}
    scaling["beta"] = rope.pop("llama_4_scaling_beta")
    for field in ("mask_token_id", "block_size", "dlm_paradigm"):
        del raw[field]
    raw |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "llama_4_scaling": scaling}
    write_json(folder / "config.json", raw)
    return folder


def config(shape: Shape, layers: int) -> dict[str, Any]:
    """The config.json of an instruct release with this many layers."""
    return {
        "architectures": ["NemotronLabsDiffusionModel"],
        "model_type": "nemotron_labs_diffusion",
        "dtype": "bfloat16",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 16.0,
            "original_max_position_embeddings": 16384,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 11,
        "mask_token_id": 100,
        "block_size": 32,
        "dlm_paradigm": "bidirectional",
    }


def write_header(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write a safetensors file that declares bfloat16 tensors but has a sparse hole instead of their data."""
    header: dict[str, Any] = {}
    end = 0
    for name, size in shapes.items():
        begin = end
        values = 1
        for length in size:
            values *= length
        end += 2 * values
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)


def write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
