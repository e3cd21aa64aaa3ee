"""FlashAttention's functions on a CPU: what vLLM's FLASH_ATTN calls, with dense attention in its kernel's place.

with pytest.MonkeyPatch.context() as patches:
    install(patches)
    impl.forward(...)           # vLLM's own code up to the kernel, and after it
"""

from typing import Any

import pytest
import torch

from attention_backend.reference import attend, gather


def varlen(
    q: torch.Tensor,  # [T, H, D]
    k: torch.Tensor,  # [N, P, G, D], pages
    v: torch.Tensor,  # [N, P, G, D]
    out: torch.Tensor,  # [T, H, D], written
    cu_seqlens_q: torch.Tensor,  # [R + 1] int32
    seqused_k: torch.Tensor,  # [R] int32
    block_table: torch.Tensor,  # [R, W] int32
    softmax_scale: float,
    causal: bool,
    window_size: list[int] | None = None,
    **options: Any,
) -> torch.Tensor:
    """Attention over pages. A causal row sees the keys up to its own, counted from the end, as in FlashAttention."""
    for name in ("alibi_slopes", "softcap", "s_aux", "mask_mod", "dynamic_causal"):
        if options.get(name):
            raise NotImplementedError(f"this stand-in has no {name}")
    if window_size not in (None, [-1, -1]):
        raise NotImplementedError(f"this stand-in has no window, not even {window_size}")
    for request, length in enumerate(seqused_k.tolist()):
        rows = slice(*cu_seqlens_q[request : request + 2].tolist())
        count = rows.stop - rows.start
        keys, values = (gather(pages.transpose(1, 2), block_table[request], length) for pages in (k, v))
        sees = torch.ones(count, length, dtype=torch.bool)
        out[rows] = attend(q[rows], keys, values, sees.tril(length - count) if causal else sees, softmax_scale)
    return out


def store(
    key: torch.Tensor,  # [S, G, D]
    value: torch.Tensor,  # [S, G, D]
    keys: torch.Tensor,  # [N, P, G, D], written
    values: torch.Tensor,  # [N, P, G, D], written
    slots: torch.Tensor,  # [S] int64
    *_: Any,
) -> None:
    """Write keys and values to their slots."""
    page, place = slots // keys.shape[1], slots % keys.shape[1]
    keys[page, place], values[page, place] = key, value


def install(patches: pytest.MonkeyPatch) -> None:
    """Let vLLM find these functions, as version 3."""
    from vllm.v1.attention.backends import flash_attn

    patches.setattr(flash_attn, "flash_attn_varlen_func", varlen, raising=False)
    patches.setattr(flash_attn, "reshape_and_cache_flash", store, raising=False)
    patches.setattr(flash_attn, "get_flash_attn_version", lambda *_, **__: 3)
