"""The reference model's three costly operations, computed the same but faster for training on a CPU.

Attention: PyTorch's fused CPU kernel is made for inference; its backward does not use the matrix units. Two batched
bf16 products and a softmax take half the time. Normalisation and rotation: one hand-written backward each, and bf16
results, so that the projections after them need not convert. Made for use under bf16 autocast.

    with fast_training():
        ...                                        # the reference model computes through these
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from vllm_nld.reference import model as reference


def attend(
    query: torch.Tensor,  # [N, H, T, D]
    key: torch.Tensor,  # [N, H, S, D]
    value: torch.Tensor,  # [N, H, S, D]
    attn_mask: torch.Tensor | None = None,  # [N or 1, 1, T, S] bool, True where a query may look, in every row
) -> torch.Tensor:  # [N, H, T, D] bf16
    """softmax(q·k / sqrt(D) + bias)·v, all in bf16."""
    n, heads, t, size = query.shape
    s = key.shape[2]
    mask = torch.ones(1, 1, t, s, dtype=torch.bool) if attn_mask is None else attn_mask
    bias = torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill_(~mask, float("-inf"))
    query, key, value = (x.to(torch.bfloat16).reshape(n * heads, -1, size) for x in (query * size**-0.5, key, value))
    scores = torch.baddbmm(bias.expand(n, heads, t, s).reshape(n * heads, t, s), query, key.transpose(1, 2))
    with torch.autocast("cpu", enabled=False):
        weights = scores.softmax(-1)
    return (weights @ value).view(n, heads, t, size)


class Normalise(torch.autograd.Function):
    """RMS normalisation in fp32 with a bf16 result."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(wide, weight, inverse)
        return (wide * inverse).mul_(weight).to(torch.bfloat16)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        wide, weight, inverse = ctx.saved_tensors
        gradient, unit = gradients[0].float(), wide * inverse
        to_weight = (gradient * unit).sum(dim=tuple(range(gradient.dim() - 1))) if ctx.needs_input_grad[1] else None
        gradient = gradient * weight
        along = torch.linalg.vecdot(gradient, unit).div_(unit.shape[-1]).unsqueeze(-1)
        return gradient.sub_(unit.mul_(along)).mul_(inverse), to_weight, None


class Rotate(torch.autograd.Function):
    """Rotary embedding, neox style: x [N, heads, T, D]; its backward turns the other way."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return turn(gradients[0], cos, -sin), None, None


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x with each pair (i, i + D/2) turned by its angle; sums in fp32."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.empty_like(x)
    half = x.shape[-1] // 2
    turned[..., :half] = (first * cos).sub_(second * sin)
    turned[..., half:] = (second * cos).add_(first * sin)
    return turned


@contextmanager
def fast_training() -> Iterator[None]:
    """Within this context the reference model normalises, rotates and attends through this module."""
    with (
        patch.object(reference.RMSNorm, "forward", lambda self, x: Normalise.apply(x, self.weight, self.eps)),
        patch.object(reference, "rotate", Rotate.apply),
        patch.object(reference.F, "scaled_dot_product_attention", attend),
    ):
        yield
