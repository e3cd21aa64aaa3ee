"""The NLD transformer in plain PyTorch, written to be read: the oracle for every other implementation in this project.

One stack of weights serves both pathways; only the attention mask differs. A causal forward is the AR pathway, and what
it writes to the cache is kept. A bidirectional forward is the diffusion pathway: every row sees the cached prefix and
the whole block, and the caller drops what it wrote (`KVCache.truncate`).

    model = ReferenceModel.from_pretrained(path, dtype=torch.float32)
    cache = KVCache(model.config.num_hidden_layers)
    hidden = model(prompt, cache)                       # [1, T] int64 -> [1, T, hidden], causal
    logits = model.logits(hidden[:, -1])                # [1, V]
    draft = model(block, cache, causal=False, lora=True)
    cache.truncate(prompt.shape[1])

Letters in shapes: N sequences, T new tokens, S cached + new tokens, H query heads, G key/value heads, D head size.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from vllm_nld.checkpoint import (
    ADAPTER_DIR,
    CheckpointError,
    canonical_name,
    check_tensors,
    read_config,
    read_shapes,
    weight_files,
)
from vllm_nld.configs import NemotronLabsDiffusionConfig
from vllm_nld.reference import masks


@dataclass
class KVCache:
    """Rotated keys and values of every layer, [N, G, S, D] each; the list is empty before the first forward."""

    num_layers: int
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens held."""
        return self.keys[0].shape[2] if self.keys else 0

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add one layer's new rows [N, G, T, D] and return all of its rows [N, G, S, D]."""
        if len(self.keys) <= layer:
            self.keys.append(keys)
            self.values.append(values)
        else:
            self.keys[layer] = torch.cat([self.keys[layer], keys], dim=2)
            self.values[layer] = torch.cat([self.values[layer], values], dim=2)
        return self.keys[layer], self.values[layer]

    def truncate(self, length: int) -> None:
        """Forget every row from `length` on."""
        self.keys = [keys[:, :, :length] for keys in self.keys]
        self.values = [values[:, :, :length] for values in self.values]

    def keep(self, rows: torch.Tensor) -> None:
        """Keep these rows only, [n] int64 indices into S, in this order."""
        self.keys = [keys[:, :, rows] for keys in self.keys]
        self.values = [values[:, :, rows] for values in self.values]


class RMSNorm(nn.Module):
    """Root-mean-square normalisation, computed in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def yarn_magnitude(factor: float, mscale: float) -> float:
    """YaRN's attention temperature for one mscale key (Peng et al. 2023, eq. 22): 0.1 · mscale · ln(factor) + 1."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rotary_frequencies(config: NemotronLabsDiffusionConfig) -> tuple[torch.Tensor, float]:
    """Inverse frequencies [D/2] float32 and the factor on cos and sin, for `rope_type` default or yarn.

    YaRN (Peng et al. 2023, section 3.2): dimensions that turn more than `beta_fast` times over the original context
    keep their frequency, those that turn less than `beta_slow` times are interpolated by `factor`, those between are
    blended.
    """
    rope = config.rope_parameters or {}
    theta, dim = rope["rope_theta"], config.head_dim
    plain = theta ** -(torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return plain, 1.0
    if kind != "yarn":
        raise ValueError(f"rope_parameters.rope_type must be 'default' or 'yarn', not {kind!r}")

    factor, context = rope["factor"], rope["original_max_position_embeddings"]

    def dimension_with(turns: float) -> float:
        return dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension_with(rope.get("beta_fast") or 32)), 0)
    high = min(math.ceil(dimension_with(rope.get("beta_slow") or 1)), dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    interpolated = ramp.clamp(0, 1)
    frequencies = plain / factor * interpolated + plain * (1 - interpolated)

    mscale, mscale_all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    if mscale and mscale_all_dim:
        magnitude = yarn_magnitude(factor, mscale) / yarn_magnitude(factor, mscale_all_dim)
    else:
        magnitude = yarn_magnitude(factor, 1.0)
    return frequencies, magnitude


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding, neox style: x [N, heads, T, D]; cos and sin [T, D/2] or [N, 1, T, D/2], float32."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class DraftLora(nn.Module):
    """A low-rank addition to one projection: scale · B·A·x, scale = lora_alpha / r."""

    def __init__(self, in_features: int, out_features: int, rank: int, scale: float) -> None:
        super().__init__()
        self.lora_A = nn.Linear(in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, out_features, bias=False)
        self.scale = scale
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lora_B(self.lora_A(x)) * self.scale


class Attention(nn.Module):
    """Grouped-query attention: project, rotate, scale queries by s(pos), attend."""

    def __init__(self, config: NemotronLabsDiffusionConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.group = config.num_attention_heads // config.num_key_value_heads
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)
        self.lora: DraftLora | None = None  # on o_proj, in draft passes only

    def forward(
        self,
        x: torch.Tensor,  # [N, T, hidden]
        rope: tuple[torch.Tensor, torch.Tensor],
        query_scale: torch.Tensor,  # [T] or [N, 1, T] float32
        mask: torch.Tensor | None,  # broadcastable to [N, H, T, S] bool, True where a query may look; None: everywhere
        cache: KVCache | None,
        lora: bool,
    ) -> torch.Tensor:
        n, t, _ = x.shape
        q, k, v = (
            projection(x).view(n, t, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, *rope), rotate(k, *rope)
        q = (q * query_scale.unsqueeze(-1)).to(q.dtype)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        k, v = k.repeat_interleave(self.group, dim=1), v.repeat_interleave(self.group, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out = out.transpose(1, 2).reshape(n, t, -1)
        if lora and self.lora is not None:
            return self.o_proj(out) + self.lora(out)
        return self.o_proj(out)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: NemotronLabsDiffusionConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Pre-norm decoder layer."""

    def __init__(self, config: NemotronLabsDiffusionConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, rope, query_scale, mask, cache, lora):  # type: ignore[no-untyped-def]  # see Attention.forward
        x = x + self.self_attn(self.input_layernorm(x), rope, query_scale, mask, cache, lora)
        return x + self.mlp(self.post_attention_layernorm(x))


class Encoder(nn.Module):
    """The stack under the head; the released checkpoints name it `encoder`."""

    def __init__(self, config: NemotronLabsDiffusionConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class ReferenceModel(nn.Module):
    """Encoder and head with the released checkpoints' tensor names, so that `state_dict` is the released layout."""

    def __init__(self, config: NemotronLabsDiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.diffusion_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.diffusion_head.weight = self.encoder.embed_tokens.weight
        frequencies, self.magnitude = rotary_frequencies(config)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(
        self,
        tokens: torch.Tensor,  # [N, T] int64
        cache: KVCache | None = None,
        *,
        causal: bool = True,
        positions: torch.Tensor | None = None,  # [T] or [N, T] int64; default: right after the cache
        mask: torch.Tensor | None = None,  # [T, S] or [N, 1, T, S] bool, True: may look; overrides `causal`
        lora: bool = False,
    ) -> torch.Tensor:  # [N, T, hidden], normalised: feed to `logits`
        start = cache.length if cache is not None else 0
        t = tokens.shape[1]
        if positions is None:
            positions = torch.arange(start, start + t)
        if mask is None and causal:
            mask = masks.causal(t, cached=start)
        rope, query_scale = self.rotation(positions), self.query_scale(positions)
        x = self.encoder.embed_tokens(tokens)
        for layer in self.encoder.layers:
            x = layer(x, rope, query_scale, mask, cache, lora)
        return self.encoder.norm(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden] to [..., V] float32. Callers pass the rows they need, never a whole prompt."""
        return self.diffusion_head(hidden).float()

    def rotation(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, float32: [T, D/2] for positions [T], [N, 1, T, D/2] for positions [N, T]."""
        angles = positions.unsqueeze(-1).float() * self.frequencies
        if positions.dim() == 2:
            angles = angles.unsqueeze(1)
        return angles.cos() * self.magnitude, angles.sin() * self.magnitude

    def query_scale(self, positions: torch.Tensor) -> torch.Tensor:
        """s(pos) = 1 + beta · ln(1 + floor(pos / original context)), float32: [T] for [T], [N, 1, T] for [N, T]."""
        scaling = self.config.llama_4_scaling
        if scaling is None:
            scale = torch.ones(positions.shape)
        else:
            turns = torch.floor(positions / scaling["original_max_position_embeddings"])
            scale = 1 + scaling["beta"] * torch.log(1 + turns)
        return scale.unsqueeze(1) if positions.dim() == 2 else scale

    @classmethod
    def from_pretrained(
        cls, path: str | Path, dtype: torch.dtype = torch.float32, adapter: bool = True
    ) -> "ReferenceModel":
        """Load a checkpoint folder in the Hugging Face layout, with its draft adapter if it has one and `adapter` says so.

        Raises CheckpointError for a checkpoint that does not fit its config.
        """
        path = Path(path)
        config = NemotronLabsDiffusionConfig(**read_config(path))
        check_tensors(config, read_shapes(path), where=path)
        with torch.device("meta"):
            model = cls(config)
        weights = {canonical_name(k): v for file in weight_files(path) for k, v in load_file(file).items()}
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
        model.load_state_dict(weights, strict=not config.tie_word_embeddings, assign=True)
        if config.tie_word_embeddings:  # assigning has replaced the embedding, but not the head that was tied to it
            model.diffusion_head.weight = model.encoder.embed_tokens.weight
        frequencies, _ = rotary_frequencies(config)
        model.register_buffer("frequencies", frequencies, persistent=False)
        if adapter and (path / ADAPTER_DIR).is_dir():
            model.load_adapter(path / ADAPTER_DIR, dtype)
        return model.eval().requires_grad_(False)

    def add_adapter(self, rank: int, alpha: float) -> None:
        """A fresh draft adapter on every o_proj; it changes nothing until trained, as its B is zero."""
        for layer in self.encoder.layers:
            o_proj = layer.self_attn.o_proj
            layer.self_attn.lora = DraftLora(o_proj.in_features, o_proj.out_features, rank, alpha / rank)

    def load_adapter(self, path: Path, dtype: torch.dtype = torch.float32) -> None:
        """Read a PEFT folder (adapter_config.json, adapter_model.safetensors) with o_proj as its only target.

        Raises CheckpointError where a file or tensor is missing, of another shape, or the target is another one.
        """
        try:
            settings = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
            tensors = load_file(path / "adapter_model.safetensors")
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{path} is no readable draft adapter ({error}): download the folder again") from None
        if list(settings["target_modules"]) != ["o_proj"]:
            raise CheckpointError(
                f"{path / 'adapter_config.json'}: target_modules must be ['o_proj'], not {settings['target_modules']}"
            )
        self.add_adapter(settings["r"], settings["lora_alpha"])
        for index, layer in enumerate(self.encoder.layers):
            lora = layer.self_attn.lora
            for name, linear in (("lora_A", lora.lora_A), ("lora_B", lora.lora_B)):
                key = f"base_model.model.encoder.layers.{index}.self_attn.o_proj.{name}.weight"
                shape = list(linear.weight.shape)
                if key not in tensors or list(tensors[key].shape) != shape:
                    found = list(tensors[key].shape) if key in tensors else "nothing"
                    raise CheckpointError(
                        f"{path}: {key} must have shape {shape}, found {found}: download the folder again"
                    )
                linear.weight.data = tensors[key].to(dtype)
