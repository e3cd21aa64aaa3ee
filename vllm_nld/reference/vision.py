"""How the vision-language model looks at an image, in plain PyTorch: a Pixtral tower and Mistral 3's projector.

The tower is a transformer over patches: each sees all patches of its image, and rotary embedding turns half of each
head's dimensions by the patch's row and half by its column. The projector merges the patches of a cell into one
feature of the decoder's size.

    tower, projector = VisionTower(config.vision_config), Projector(config)
    features = projector(tower(pixels), pixels.shape)       # [N, 3, height, width] -> [N, C, hidden]

Letters in shapes: N images of one size, P patches of an image, C cells, H heads, D head size, W the tower's hidden
size.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vllm_nld.model.configs import NemotronLabsDiffusionVLMConfig
from vllm_nld.reference.layers import RMSNorm
from vllm_nld.reference.rope import rotate

EPS = 1e-5  # of every norm in Pixtral; its config has none
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"silu": F.silu, "gelu": F.gelu}


class TowerAttention(nn.Module):
    """Every patch of an image attends to every other."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        size = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(size, size, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:  # [N, P, W]
        q, k, v = (
            projection(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # [N, H, P, D]
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(rotate(q, *rope), rotate(k, *rope), v)
        return self.o_proj(out.transpose(1, 2).reshape(x.shape))


class TowerMLP(nn.Module):
    """down(act(gate(x)) · up(x))."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.gate_proj, self.up_proj = nn.Linear(size, inner, bias=False), nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)
        self.act = ACTIVATIONS[config.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class TowerLayer(nn.Module):
    """Pre-norm layer."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = RMSNorm(config.hidden_size, EPS), RMSNorm(config.hidden_size, EPS)
        self.attention, self.feed_forward = TowerAttention(config), TowerMLP(config)

    def forward(self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), rope)
        return x + self.feed_forward(self.ffn_norm(x))


class TowerLayers(nn.Module):
    """The layers, under the name that checkpoints give them."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TowerLayer(config) for _ in range(config.num_hidden_layers))


class VisionTower(nn.Module):
    """Pixels to one vector per patch, in reading order. There is no norm at the end."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.patch, self.head_dim = config.patch_size, config.hidden_size // config.num_attention_heads
        self.theta: float = config.rope_parameters["rope_theta"]
        self.patch_conv = nn.Conv2d(config.num_channels, config.hidden_size, self.patch, self.patch, bias=False)
        self.ln_pre = RMSNorm(config.hidden_size, EPS)
        self.transformer = TowerLayers(config)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:  # [N, 3, height, width] -> [N, P, W]
        grid = self.patch_conv(pixels)  # [N, W, rows, columns]
        x, rope = self.ln_pre(grid.flatten(2).transpose(1, 2)), self.rotation(*grid.shape[2:])
        for layer in self.transformer.layers:
            x = layer(x, rope)
        return x

    def rotation(self, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, [P, D/2] float32. Frequencies alternate between rows and columns."""
        frequencies = self.theta ** -(torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim)
        grid = torch.arange(rows), torch.arange(columns)
        row, column = (part.flatten()[:, None] for part in torch.meshgrid(*grid, indexing="ij"))
        angles = torch.cat([row * frequencies[0::2], column * frequencies[1::2]], dim=-1)
        return angles.cos(), angles.sin()


class PatchMerger(nn.Module):
    """The patches of a cell, one after another for each channel, become one vector."""

    def __init__(self, size: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.merging_layer = nn.Linear(size * side**2, size, bias=False)

    def forward(self, x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:  # [N, P, W] -> [N, C, W]
        cells = x.view(len(x), rows // self.side, self.side, columns // self.side, self.side, -1)
        return self.merging_layer(cells.permute(0, 1, 3, 5, 2, 4).reshape(len(x), -1, x.shape[-1] * self.side**2))


class Projector(nn.Module):
    """The tower's vectors to features in the decoder's embedding space."""

    def __init__(self, config: NemotronLabsDiffusionVLMConfig) -> None:
        super().__init__()
        tower: Any = config.vision_config
        self.patch = tower.patch_size
        self.norm = RMSNorm(tower.hidden_size, EPS)
        self.patch_merger = PatchMerger(tower.hidden_size, config.spatial_merge_size)
        self.linear_1 = nn.Linear(tower.hidden_size, config.hidden_size, bias=False)
        self.linear_2 = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, patches: torch.Tensor, pixels: torch.Size) -> torch.Tensor:  # [N, P, W], [.., height, width]
        rows, columns = pixels[-2] // self.patch, pixels[-1] // self.patch
        return self.linear_2(F.gelu(self.linear_1(self.patch_merger(self.norm(patches), rows, columns))))
