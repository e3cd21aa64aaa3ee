"""Checks a checkpoint on disk by its headers, without loading a tensor.

The start-up check, the reference and `vllm-nld doctor` share it, so all three agree on names.

    shapes = read_shapes(path)                     # canonical tensor name -> shape
    check_tensors(config, shapes, where=path)      # raises CheckpointError, naming tensor and remedy
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_nld.model.configs import NemotronLabsDiffusionConfig

ADAPTER_DIR = "linear_spec_lora"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")

# config.json must contain these: with a default value, we would serve a different model from the one that was trained.
REQUIRED_CONFIG_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "max_position_embeddings",
    "mask_token_id",
)


# The same for the vision-language model. Its tower's fields have the defaults of transformers' PixtralVisionConfig.
REQUIRED_VLM_KEYS = ("vision_config",)

VISION = ("vision_tower.", "multi_modal_projector.")  # below encoder.


class CheckpointError(ValueError):
    """A checkpoint that cannot be served. `problem` names the file or tensor, `remedy` the fix."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}: {remedy}")
        self.problem = problem
        self.remedy = remedy


def canonical_name(name: str) -> str:
    """A tensor's name in the released repositories; converted checkpoints call it `language_model.*`.

    What converted vision-language checkpoints put beside `language_model.*` is below `encoder.` in the released ones.
    """
    name = name.removeprefix("language_model.")
    if name.startswith(VISION):
        name = "encoder." + name
    if name.startswith("model."):
        name = "encoder." + name.removeprefix("model.")
    if name.startswith("lm_head."):
        name = "diffusion_head." + name.removeprefix("lm_head.")
    return name


def expected_shapes(config: "NemotronLabsDiffusionConfig") -> dict[str, tuple[int, ...]]:
    """The shape, [out, in], of every tensor of an unquantized checkpoint, by canonical name."""
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    head_dim = config.head_dim or hidden // config.num_attention_heads
    queries = config.num_attention_heads * head_dim
    keys = config.num_key_value_heads * head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.embed_tokens.weight": (vocab, hidden),
        "encoder.norm.weight": (hidden,),
    }
    if not config.tie_word_embeddings:
        shapes["diffusion_head.weight"] = (vocab, hidden)
    for index in range(config.num_hidden_layers):
        shapes |= {f"encoder.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    if getattr(config, "vision_config", None) is not None:
        shapes |= vision_shapes(config)
    return shapes


def vision_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """The same for the vision tower and the projector of a vision-language model."""
    tower, merged, text = config.vision_config, config.spatial_merge_size**2, config.hidden_size
    hidden, inner = tower.hidden_size, tower.intermediate_size
    layer: dict[str, tuple[int, ...]] = {
        "attention_norm": (hidden,),
        "ffn_norm": (hidden,),
        **{f"attention.{name}_proj": (hidden, hidden) for name in "qkvo"},
        "feed_forward.gate_proj": (inner, hidden),
        "feed_forward.up_proj": (inner, hidden),
        "feed_forward.down_proj": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "vision_tower.patch_conv": (hidden, tower.num_channels, tower.patch_size, tower.patch_size),
        "vision_tower.ln_pre": (hidden,),
        "multi_modal_projector.norm": (hidden,),
        "multi_modal_projector.patch_merger.merging_layer": (hidden, hidden * merged),
        "multi_modal_projector.linear_1": (text, hidden),
        "multi_modal_projector.linear_2": (text, text),
    }
    for index in range(tower.num_hidden_layers):
        stem = f"vision_tower.transformer.layers.{index}"
        shapes |= {f"{stem}.{name}": shape for name, shape in layer.items()}
    return {f"encoder.{name}.weight": shape for name, shape in shapes.items()}


def read_config(path: Path) -> dict[str, Any]:
    """config.json as a dict. Raises CheckpointError if it is missing, unreadable or lacks a required key."""
    file = path / "config.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist", "name a folder in the Hugging Face layout") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is not valid JSON ({error})", "download it again") from None
    is_vlm = str(raw.get("model_type")).endswith("_vlm")
    required = (*REQUIRED_CONFIG_KEYS, *(REQUIRED_VLM_KEYS if is_vlm else ()))
    missing = [key for key in required if key not in raw]
    if "rope_theta" not in raw and "rope_theta" not in (raw.get("rope_parameters") or {}):
        missing.append("rope_parameters.rope_theta")
    if missing:
        raise CheckpointError(f"{file} lacks {', '.join(missing)}", "take config.json from the model's own repository")
    return raw


def weight_files(path: Path) -> list[Path]:
    """The model's safetensors files, without those of the draft adapter in its subfolder.

    Raises CheckpointError if there are none, if there are only pickled weights, or if the index names a missing file.
    """
    files = sorted(path.glob("*.safetensors"))
    if not files:
        pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLE_SUFFIXES)
        if pickles:
            raise CheckpointError(
                f"{path / pickles[0]} is a pickle file, which can run code when it is read",
                "convert the weights to safetensors (safetensors.torch.save_file)",
            )
        raise CheckpointError(f"{path} holds no *.safetensors file", "download the weights again")
    index = path / "model.safetensors.index.json"
    if index.exists():
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index} is damaged ({error!r})", "download it again") from None
        absent = sorted(named - {file.name for file in files})
        if absent:
            raise CheckpointError(f"{path / absent[0]} is named in {index.name} but absent", "download it again")
        files = [file for file in files if file.name in named]
    return files


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor shapes by canonical name, from the safetensors headers. Raises CheckpointError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(path):
        try:
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - a safetensors handle is not a dict
                    shapes[canonical_name(name)] = tuple(tensors.get_slice(name).get_shape())
        except SafetensorError as error:
            raise CheckpointError(f"{file} is damaged ({error})", "download it again") from None
    return shapes


class TensorCheck:
    """Compares tensors with a config, one at a time, so that a stream of weights is never held in memory.

    A quantized checkpoint stores packed weights and scales under its scheme's own names, so only modules are compared;
    vLLM's loader checks the rest.
    """

    def __init__(self, config: "NemotronLabsDiffusionConfig", where: Path, quantized: bool = False) -> None:
        self.where = where
        self.quantized = quantized
        self.expected = {self._key(name): shape for name, shape in expected_shapes(config).items()}
        self.seen: set[str] = set()

    def _key(self, name: str) -> str:
        return name.rpartition(".")[0] if self.quantized else name

    def see(self, name: str, shape: tuple[int, ...]) -> None:
        """Check one tensor, by canonical name. Raises CheckpointError if it is unknown or misshapen."""
        key = self._key(name)
        if key not in self.expected:
            raise CheckpointError(
                f"{self.where} has the tensor {name}, which the model does not know",
                "check architectures and num_hidden_layers in config.json; adapters belong in a subfolder",
            )
        if not self.quantized and shape != self.expected[key]:
            raise CheckpointError(
                f"{name} in {self.where} has shape {list(shape)}, but config.json asks for {list(self.expected[key])}",
                "config.json and the weights belong to different models",
            )
        self.seen.add(key)

    def finish(self) -> None:
        """Raise CheckpointError if a tensor is missing."""
        missing = sorted(self.expected.keys() - self.seen)
        if missing:
            raise CheckpointError(
                f"{self.where} lacks {len(missing)} tensor(s), the first {missing[0]}",
                "download the checkpoint again, or check num_hidden_layers in config.json",
            )


def check_tensors(
    config: "NemotronLabsDiffusionConfig",
    shapes: Mapping[str, tuple[int, ...]],
    where: Path,
    quantized: bool = False,
) -> None:
    """Check a whole checkpoint with `TensorCheck`. Raises CheckpointError, naming a tensor and the remedy."""
    check = TensorCheck(config, where, quantized)
    for name, shape in shapes.items():
        check.see(name, shape)
    check.finish()
