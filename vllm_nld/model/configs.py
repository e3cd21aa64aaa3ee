"""Hugging Face config classes of the NLD family, registered with AutoConfig.

The released repositories come with remote code for these; because we register our own classes, `trust_remote_code` is
never needed. All values come from config.json: members of the family differ in head size, RoPE base, YaRN factor and
EOS.

    register_configs()
    config = AutoConfig.from_pretrained("/models/Nemotron-Labs-Diffusion-8B")
    config.llama_4_scaling   # {"original_max_position_embeddings": 16384, "beta": 0.1}
"""

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PixtralVisionConfig, PretrainedConfig

VLM_ARCHITECTURE = "NemotronLabsDiffusionVLMModel"
SUPPORTED_ARCHITECTURES = ("NemotronLabsDiffusionModel", "MinistralDiffEncoderModel", VLM_ARCHITECTURE)

# Architectures that users will try and that should end in a sentence, not a stack trace. They must be registered, or
# vLLM would not call our hook.
REFUSED_ARCHITECTURES = {
    "DiffEncoderModel": (
        "is a Qwen3-based diffusion model, not a Nemotron-Labs-Diffusion model: "
        "vllm-nld serves checkpoints whose architectures are " + " or ".join(SUPPORTED_ARCHITECTURES)
    ),
}


class NemotronLabsDiffusionConfig(PretrainedConfig):
    """A Mistral-shaped decoder with a mask token: causal for AR, bidirectional in a block for drafting and denoising.

    Raises ValueError if fields contradict each other or have values that the family does not support.
    """

    model_type = "nemotron_labs_diffusion"
    ignore_keys_at_rope_validation = {"llama_4_scaling_beta"}  # ours; transformers' YaRN does not know it

    vocab_size: int = 131072
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 34
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 262144
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False
    initializer_range: float = 0.02
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    use_cache: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 11
    pad_token_id: int | None = None
    mask_token_id: int = 100
    block_size: int = 32
    dlm_paradigm: str = "bidirectional"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        # Some exports set it to false; vLLM would take the model for an encoder.
        kwargs.pop("is_causal", None)
        super().__post_init__(**kwargs)
        self.check()

    def check(self) -> None:
        """Raise ValueError for values that the model cannot run with. `--hf-overrides` change values later."""
        for name in ("mask_token_id", "block_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"{name} must be an integer in config.json or --hf-overrides, not {value!r}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads}) in config.json"
            )
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError(
                f"mask_token_id ({self.mask_token_id}) must lie in [0, vocab_size = {self.vocab_size}) in config.json"
            )
        if self.block_size < 2:
            raise ValueError(f"block_size ({self.block_size}) must be at least 2 in config.json")
        if self.hidden_act != "silu":
            raise ValueError(f"hidden_act must be 'silu' in config.json, not {self.hidden_act!r}")
        if self.dlm_paradigm != "bidirectional":
            raise ValueError(f"dlm_paradigm must be 'bidirectional' in config.json, not {self.dlm_paradigm!r}")
        kind = (self.rope_parameters or {}).get("rope_type", "default")
        if kind not in ("default", "yarn"):
            raise ValueError(f"rope_parameters.rope_type must be 'default' or 'yarn' in config.json, not {kind!r}")
        if self.attention_bias or self.mlp_bias:
            raise ValueError("attention_bias and mlp_bias must be false in config.json: the NLD family has no biases")

    @property
    def llama_4_scaling(self) -> dict[str, float] | None:
        """The query scale s(pos) in the form that vLLM's MistralAttention reads; None if the config has none."""
        rope = self.rope_parameters or {}
        beta = rope.get("llama_4_scaling_beta")
        if not beta:
            return None
        return {"original_max_position_embeddings": rope["original_max_position_embeddings"], "beta": beta}

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end a sequence, whether config.json has one or a list."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)


class MinistralDLMConfig(NemotronLabsDiffusionConfig):
    """The same layout under the name of the research releases (`MinistralDiffEncoderModel`)."""

    model_type = "ministral_dlm"


class NemotronLabsDiffusionVLMConfig(NemotronLabsDiffusionConfig):
    """The vision-language model: the text model's fields, and `vision_config` for a Pixtral tower.

    max_image_size: the longest side of an image in pixels; larger ones are scaled down. The released model was trained
        with 1400, which its config.json does not say.
    """

    model_type = "nemotron_labs_diffusion_vlm"
    sub_configs = {"vision_config": PixtralVisionConfig}

    vocab_size: int = 131073
    vision_config: Any = None  # a PixtralVisionConfig, or its fields
    spatial_merge_size: int = 2
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = False
    max_image_size: int = 1400
    image_start_token_id: int = 18
    image_pad_token_id: int = 19
    image_break_token_id: int = 20
    image_end_token_id: int = 21

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, PixtralVisionConfig):
            self.vision_config = PixtralVisionConfig(**(self.vision_config or RELEASED_TOWER))
        super().__post_init__(**kwargs)

    def check(self) -> None:
        """As the text model's, and the same for the vision tower and the image tokens."""
        super().check()
        tower = self.vision_config
        kind = tower.model_type
        if kind != "pixtral":
            raise ValueError(f"vision_config.model_type must be 'pixtral' in config.json, not {kind!r}")
        if tower.hidden_size % tower.num_attention_heads:
            raise ValueError(
                f"vision_config.hidden_size ({tower.hidden_size}) must be a multiple of its num_attention_heads "
                f"({tower.num_attention_heads}) in config.json"
            )
        if self.projector_hidden_act != "gelu":
            raise ValueError(f"projector_hidden_act must be 'gelu' in config.json, not {self.projector_hidden_act!r}")
        if self.multimodal_projector_bias:
            raise ValueError("multimodal_projector_bias must be false in config.json: the NLD family has no biases")
        for name in ("spatial_merge_size", "max_image_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer in config.json or --hf-overrides, not {value!r}")
        ids = self.image_token_ids
        if len(set(ids.values())) < len(ids) or not all(0 <= token < self.vocab_size for token in ids.values()):
            raise ValueError(f"image tokens {ids} in config.json must be four ids below vocab_size {self.vocab_size}")

    @property
    def image_token_ids(self) -> dict[str, int]:
        """The ids that make up an image in a prompt, by the tokens' names in the tokenizer."""
        parts = ("start", "pad", "break", "end")
        return {f"<|image_{part}|>": getattr(self, f"image_{part}_token_id") for part in parts}


# The released tower, for configs that only say which fields differ from it.
RELEASED_TOWER = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 1540,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
}


class NemotronLabsDiffusionImageConfig(PretrainedConfig):
    """The text-to-image model of the same name. It is recognized so that the error can say what it is."""

    model_type = "nemotron_labs_diffusion_image"

    def __post_init__(self, **kwargs: Any) -> None:
        raise ValueError(
            "nemotron_labs_diffusion_image is a text-to-image model, and vllm-nld serves language models: use a "
            f"checkpoint whose architectures are {' or '.join(SUPPORTED_ARCHITECTURES)}"
        )


CONFIG_CLASSES = (NemotronLabsDiffusionConfig, MinistralDLMConfig, NemotronLabsDiffusionVLMConfig)


def config_class(raw: Mapping[str, Any]) -> type[NemotronLabsDiffusionConfig]:
    """The class for the contents of a config.json: the text model's, unless model_type names another one."""
    known = {kind.model_type: kind for kind in CONFIG_CLASSES}
    return known.get(str(raw.get("model_type")), NemotronLabsDiffusionConfig)


def is_ours(model_config: Any) -> bool:
    """Whether vLLM's ModelConfig, or None, describes a model that this package serves."""
    return model_config is not None and model_config.architecture in SUPPORTED_ARCHITECTURES


def register_configs() -> None:
    """Register the config classes with transformers' AutoConfig. Idempotent."""
    for kind in (*CONFIG_CLASSES, NemotronLabsDiffusionImageConfig):
        AutoConfig.register(kind.model_type, kind, exist_ok=True)
