"""Rotary position embedding with YaRN: frequencies from the config, and the rotation.

Letters in shapes: N sequences, T tokens, D head size.
"""

import math

import torch

from vllm_nld.model.configs import NemotronLabsDiffusionConfig


def yarn_magnitude(factor: float, mscale: float) -> float:
    """YaRN's attention temperature for one mscale key (Peng et al. 2023, eq. 22): 0.1 · mscale · ln(factor) + 1."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rotary_frequencies(config: NemotronLabsDiffusionConfig) -> tuple[torch.Tensor, float]:
    """Inverse frequencies [D/2] float32 and the factor on cos and sin, for `rope_type` default or yarn.

    YaRN (Peng et al. 2023, section 3.2): dimensions that turn more than `beta_fast` times over the original context
    keep their frequency, those that turn fewer than `beta_slow` times are interpolated by `factor`, and those in
    between are blended.

    Raises ValueError for any other `rope_type`.
    """
    rope = config.rope_parameters or {}
    theta, dim = rope["rope_theta"], config.head_dim or config.hidden_size // config.num_attention_heads
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
