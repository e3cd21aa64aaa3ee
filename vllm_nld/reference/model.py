"""The NLD transformer in plain PyTorch, written to be read: the oracle for every other implementation in this project.

One stack of weights serves both pathways; only the attention mask differs. A causal forward is the AR pathway, and its
KV stays in the cache. A bidirectional forward is the diffusion pathway: every row sees the cached prefix and the whole
block, and the caller drops its KV (`KVCache.truncate`).

    model = ReferenceModel.from_pretrained(path, dtype=torch.float32)
    cache = KVCache(model.config.num_hidden_layers)
    hidden = model(prompt, cache)                       # [1, T] int64 -> [1, T, hidden], causal
    logits = model.logits(hidden[:, -1])                # [1, V]
    draft = model(block, cache, causal=False, lora=True)
    cache.truncate(prompt.shape[1])

Letters in shapes: N sequences, T new tokens, S cached + new tokens, H query heads, G key/value heads, D head size.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from vllm_nld.model.adapter import RELEASED, TARGETS, open_adapter
from vllm_nld.model.checkpoint import (
    ADAPTER_DIR,
    canonical_name,
    check_tensors,
    read_config,
    read_shapes,
    weight_files,
)
from vllm_nld.model.configs import NemotronLabsDiffusionConfig
from vllm_nld.reference import masks
from vllm_nld.reference.cache import KVCache
from vllm_nld.reference.layers import RMSNorm
from vllm_nld.reference.rope import rotary_frequencies, rotate

__all__ = ["KVCache", "ReferenceModel"]


class DraftLora(nn.Module):
    """A low-rank update of one projection: scale · B·A·x, scale = lora_alpha / r."""

    def __init__(self, in_features: int, out_features: int, rank: int, scale: float) -> None:
        super().__init__()
        self.lora_A = nn.Linear(in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, out_features, bias=False)
        self.scale = scale
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lora_B(self.lora_A(x)) * self.scale


class Adapted(nn.Module):
    """A module with draft adapters beside some of its projections."""

    def __init__(self) -> None:
        super().__init__()
        self.loras = nn.ModuleDict()  # by projection

    def project(
        self,
        name: str,
        x: torch.Tensor,  # [N, T, in]
        lora: bool | torch.Tensor,  # the draft adapter is on: everywhere, or in the rows of a [T] bool
    ) -> torch.Tensor:  # [N, T, out]
        """A projection's output, with its adapter's."""
        out: torch.Tensor = getattr(self, name)(x)
        if lora is False or name not in self.loras:
            return out
        extra = self.loras[name](x)
        return out + (extra if lora is True else extra * lora.unsqueeze(-1))


class Attention(Adapted):
    """Grouped-query attention: project, rotate, scale queries by s(pos), attend."""

    def __init__(self, config: NemotronLabsDiffusionConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
        self.group = config.num_attention_heads // config.num_key_value_heads
        queries = config.num_attention_heads * self.head_dim
        keys = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(
        self,
        x: torch.Tensor,  # [N, T, hidden]
        rope: tuple[torch.Tensor, torch.Tensor],  # cos and sin, [T, D/2] or [N, 1, T, D/2] float32
        query_scale: torch.Tensor,  # [T] or [N, 1, T] float32
        mask: torch.Tensor | None,  # broadcastable to [N, H, T, S] bool, True: attend; None: attend everywhere
        cache: KVCache | None,
        lora: bool | torch.Tensor,  # see `Adapted.project`
    ) -> torch.Tensor:
        n, t, _ = x.shape
        q, k, v = (
            self.project(name, x, lora).view(n, t, -1, self.head_dim).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        q, k = rotate(q, *rope), rotate(k, *rope)
        q = (q * query_scale.unsqueeze(-1)).to(q.dtype)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        k, v = k.repeat_interleave(self.group, dim=1), v.repeat_interleave(self.group, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.project("o_proj", out.transpose(1, 2).reshape(n, t, -1), lora)


class MLP(Adapted):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: NemotronLabsDiffusionConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor, lora: bool | torch.Tensor = False) -> torch.Tensor:
        inner = F.silu(self.project("gate_proj", x, lora)) * self.project("up_proj", x, lora)
        return self.project("down_proj", inner, lora)


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
        return x + self.mlp(self.post_attention_layernorm(x), lora)


class Encoder(nn.Module):
    """Everything below the head; the released checkpoints call it `encoder`."""

    def __init__(self, config: NemotronLabsDiffusionConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class ReferenceModel(nn.Module):
    """Encoder and head, with the released checkpoints' tensor names, so that `state_dict` has the released layout."""

    config_class = NemotronLabsDiffusionConfig
    frequencies: torch.Tensor  # [D/2] float32, a buffer

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
        positions: torch.Tensor | None = None,  # [T] or [N, T] int64; default: continue after the cache
        mask: torch.Tensor | None = None,  # [T, S] or [N, 1, T, S] bool, True: attend; overrides `causal`
        lora: bool | torch.Tensor = False,  # draft adapter on: in all rows, or in those of a [T] bool
    ) -> torch.Tensor:  # [N, T, hidden], normalised, ready for `logits`
        start = cache.length if cache is not None else 0
        t = tokens.shape[1]
        if positions is None:
            positions = torch.arange(start, start + t)
        if mask is None and causal:
            mask = masks.causal(t, cached=start)
        rope, query_scale = self.rotation(positions), self.query_scale(positions)
        x = self.embed(tokens, positions)
        for layer in self.encoder.layers:
            x = layer(x, rope, query_scale, mask, cache, lora)
        return self.encoder.norm(x)

    def embed(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:  # [N, T], [T] or [N, T]
        """Embeddings of tokens, [N, T, hidden]."""
        return self.encoder.embed_tokens(tokens)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden] to [..., V] float32. Pass only the rows needed, never a whole prompt."""
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
            scale = torch.ones(positions.shape, device=positions.device)
        else:
            turns = torch.floor(positions / scaling["original_max_position_embeddings"])
            scale = 1 + scaling["beta"] * torch.log(1 + turns)
        return scale.unsqueeze(1) if positions.dim() == 2 else scale

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: torch.dtype = torch.float32, adapter: bool = True) -> Self:
        """Load a checkpoint folder in the Hugging Face layout, with its draft adapter if it has one.

        adapter: False skips the draft adapter.

        Raises CheckpointError if the checkpoint doesn't match its config.
        """
        path = Path(path)
        config = cls.config_class(**read_config(path))
        check_tensors(config, read_shapes(path), where=path)
        with torch.device("meta"):
            model = cls(config)
        weights = {canonical_name(k): v for file in weight_files(path) for k, v in load_file(file).items()}
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
        model.load_state_dict(weights, strict=not config.tie_word_embeddings, assign=True)
        if config.tie_word_embeddings:  # assign=True replaced the embedding but not the head tied to it
            model.diffusion_head.weight = model.encoder.embed_tokens.weight
        frequencies, _ = rotary_frequencies(config)
        model.register_buffer("frequencies", frequencies, persistent=False)
        if adapter and (path / ADAPTER_DIR).is_dir():
            model.load_adapter(path / ADAPTER_DIR, dtype)
        return model.eval().requires_grad_(False)

    def adapted(self) -> Iterator[tuple[Adapted, str]]:
        """Each projection that may have an adapter: its module and its name, layer by layer."""
        for layer in self.encoder.layers:
            for target, module in TARGETS.items():
                yield getattr(layer, module), target

    def loras(self) -> Iterator[DraftLora]:
        """The draft adapters of all projections that have one."""
        for module, target in self.adapted():
            if target in module.loras:
                lora = module.loras[target]
                assert isinstance(lora, DraftLora)
                yield lora

    def add_adapter(self, rank: int, alpha: float, targets: Sequence[str] = RELEASED) -> None:
        """Put a fresh draft adapter on projections. Its B is zero, so it has no effect until trained."""
        for module, target in self.adapted():
            if target in targets:
                projection = getattr(module, target)
                fresh = DraftLora(projection.in_features, projection.out_features, rank, alpha / rank)
                module.loras[target] = fresh

    def adapter_weights(self, dtype: torch.dtype) -> list[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """A [r, in] and B [out, r] of every layer's draft adapters, by target."""
        found: list[dict[str, tuple[torch.Tensor, torch.Tensor]]] = []
        for layer in self.encoder.layers:
            loras = {target: getattr(layer, module).loras for target, module in TARGETS.items()}
            pairs = {target: loras[target][target] for target in loras if target in loras[target]}
            found.append(
                {name: (one.lora_A.weight.to(dtype), one.lora_B.weight.to(dtype)) for name, one in pairs.items()}
            )
        return found

    def load_adapter(self, path: Path, dtype: torch.dtype = torch.float32) -> None:
        """Load a PEFT folder (adapter_config.json, adapter_model.safetensors) in place of the adapter so far.

        Raises CheckpointError if a file or tensor is missing, a shape is wrong, or a target can't have an adapter.
        """
        adapter = open_adapter(path)
        adapter.check(self.config)
        for module, target in self.adapted():
            module.loras.pop(target) if target in module.loras else None
        self.add_adapter(adapter.rank, adapter.scale * adapter.rank, adapter.targets)
        for index, layer in enumerate(self.encoder.layers):
            for target in adapter.targets:
                lora = getattr(layer, TARGETS[target]).loras[target]
                lora.lora_A.weight.data, lora.lora_B.weight.data = (
                    weight.to(dtype) for weight in adapter.read(index, target)
                )
