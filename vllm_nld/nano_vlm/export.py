"""Builds nano-vlm's parts from nano's: config, tokenizer and chat template with images, and the model to start from.

The vocabulary is odd, as the released model's is.
"""

import json
from typing import Any

import torch

from vllm_nld.model.configs import NemotronLabsDiffusionVLMConfig
from vllm_nld.nano import checkpoint_path as nano_path
from vllm_nld.nano.export import CONFIG as NANO
from vllm_nld.nano.tokenizer import TEMPLATE
from vllm_nld.nano_vlm.training import TrainedVLM
from vllm_nld.reference.model import ReferenceModel

CONFIG: dict[str, Any] = NANO | {
    "architectures": ["NemotronLabsDiffusionVLMModel"],
    "model_type": "nemotron_labs_diffusion_vlm",
    "vocab_size": NANO["vocab_size"] + 1,
    "max_image_size": 192,
    "multimodal_projector_bias": False,
    "projector_hidden_act": "gelu",
    "spatial_merge_size": 2,
    "vision_config": {
        "model_type": "pixtral",
        "hidden_act": "silu",
        "hidden_size": 128,
        "image_size": 192,
        "intermediate_size": 384,
        "num_attention_heads": 4,
        "num_channels": 3,
        "num_hidden_layers": 4,
        "patch_size": 4,
        "rope_theta": 10000.0,
    },
}
PARTS = """\
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{{- '<|image_start|>' if part.type in ('image', 'image_url') else part.text -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
"""
WHOLE = "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}\n"


def vlm_config() -> NemotronLabsDiffusionVLMConfig:
    """The config as its class."""
    return NemotronLabsDiffusionVLMConfig(**json.loads(json.dumps(CONFIG)))


def template() -> str:
    """Nano's chat template, with parts in the turns of a user. Raises ValueError if nano's has changed."""
    text = TEMPLATE.read_text(encoding="utf-8")
    if text.count(WHOLE) != 1:
        raise ValueError(f"{TEMPLATE} must write a user's turn once, as {WHOLE!r}")
    return text.replace(WHOLE, PARTS)


def build_tokenizer() -> Any:
    """Nano's tokenizer, with names for the image tokens."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    path = nano_path()
    saved = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    names = {token: name for name, token in vlm_config().image_token_ids.items()}
    for token in saved["added_tokens"]:
        token["content"] = names.get(token["id"], token["content"])
    saved["model"]["vocab"] = {names.get(token, text): token for text, token in saved["model"]["vocab"].items()}
    tokens = {name: settings[name] for name in ("bos_token", "eos_token", "pad_token", "mask_token")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(saved)),
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        **tokens,
    )
    tokenizer.chat_template = template()
    return tokenizer


def start(model: TrainedVLM) -> None:
    """Take nano's weights for the decoder; the last token's embedding is the mean of the others."""
    with torch.no_grad():
        weights = model.state_dict()
        for name, weight in ReferenceModel.from_pretrained(nano_path(), adapter=False).state_dict().items():
            rows = weights[name].shape[0] - weight.shape[0]
            extra = weight.mean(dim=0, keepdim=True).expand(rows, *weight.shape[1:])
            weights[name].copy_(torch.cat([weight, extra]) if rows else weight)
