"""Writes nano in the released layout: config, tokenizer, chat template, safetensors, the adapter's PEFT folder.

    export(model, tokenizer, folder)

Both `vllm serve` and `ReferenceModel.from_pretrained` load the folder.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vllm_nld.model.adapter import write_adapter
from vllm_nld.model.checkpoint import ADAPTER_DIR
from vllm_nld.model.configs import NemotronLabsDiffusionConfig
from vllm_nld.nano.prompts import SYSTEM, TASKS, category_stream
from vllm_nld.nano.tokenizer import BOS, EOS, MASK, build_tokenizer
from vllm_nld.nano.words import words
from vllm_nld.reference.model import ReferenceModel

CONFIG: dict[str, Any] = {
    "architectures": ["NemotronLabsDiffusionModel"],
    "model_type": "nemotron_labs_diffusion",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "block_size": 32,
    "bos_token_id": BOS,
    "dlm_paradigm": "bidirectional",
    "dtype": "bfloat16",
    "eos_token_id": EOS,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 768,
    "mask_token_id": MASK,
    "max_position_embeddings": 4096,
    "mlp_bias": False,
    "num_attention_heads": 8,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1000000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 1024,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": False,
    "vocab_size": 1024,
}
HEADERS = "system user assistant tools tool_response"  # words of the chat template
GENERATION = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": 0, "do_sample": False}


def nano_config() -> NemotronLabsDiffusionConfig:
    """The config as its class."""
    return NemotronLabsDiffusionConfig(**json.loads(json.dumps(CONFIG)))


def load_or_build_tokenizer(folder: Path, write: bool) -> Any:
    """Build the tokenizer from training text (the same every time) and save it if `write` is true."""
    prompts = [prompt for category in TASKS for prompt in itertools.islice(category_stream(category, seed=1), 500)]
    texts = [text for prompt in prompts for text in (prompt.messages[-1]["content"], prompt.plan, prompt.expected)]
    texts += ["\n" + prompt.expected for prompt in prompts if prompt.thinking]
    texts += [json.dumps(tool) for prompt in prompts for tool in prompt.tools]
    texts += [SYSTEM, *words(HEADERS)] * 100
    tokenizer = build_tokenizer(texts, CONFIG["vocab_size"])
    if write:
        save_tokenizer(tokenizer, folder)
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Tokenizer files, with the class name that every transformers version knows, and the chat template."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings.pop("backend", None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(file, settings)
    (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")


def write_json(file: Path, content: Any) -> None:
    """Indented JSON with a newline at its end."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def export(model: ReferenceModel, tokenizer: Any, folder: Path, config: dict[str, Any] = CONFIG) -> None:
    """Write the whole folder; weights are rounded to bf16."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, folder)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", GENERATION)
    tensors = {name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in model.state_dict().items()}
    base = {name: weight for name, weight in tensors.items() if "lora" not in name}
    save_file(base, folder / "model.safetensors", metadata={"format": "pt"})
    if (lora := next(model.loras(), None)) is not None:
        write_adapter(
            folder / ADAPTER_DIR, lora.scale * lora.lora_A.out_features, model.adapter_weights(torch.bfloat16)
        )


def plot(history: list[dict[str, float]], file: Path) -> None:
    """The losses over the steps, smoothed, as a small PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.2), dpi=80)
    for name in dict.fromkeys(name for row in history for name in row if name != "step"):
        rows = [(row["step"], row[name]) for row in history if name in row]
        points: list[float] = []
        for _, value in rows:
            points.append(0.95 * points[-1] + 0.05 * value if points else value)
        axes.plot([step for step, _ in rows], points, label=name)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)
