"""Attention with row masks on the CPU, beside vLLM's kernel, which takes no mask.

Requests with a mask: read the request's pages and compute softmax(scale · q · k + bias) · v in float32. Two matrix
products and a softmax per request and layer, at about twice the cost of vLLM's kernel.

The other requests of the batch keep vLLM's kernel. It takes whole batches only, so for its sake a request with a mask
pretends to have no prefix: that costs next to nothing, and its output is overwritten.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from vllm import envs
from vllm._custom_ops import cpu_attn_get_scheduler_metadata

from attention_backend.kernels.pages import packing
from attention_backend.rows import RowMask, unpack

SCORES = 1 << 24  # scores held at once, 64 MiB


@dataclass(frozen=True, slots=True, eq=False)
class Masked:
    """One request with a mask."""

    rows: slice  # T of the step's rows
    length: int  # S: its prefix and its T rows
    pages: torch.Tensor  # [ceil(S / P)] int64
    bias: torch.Tensor  # [T, T] float32, 0 or -inf, added to the scores of its own rows


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A step, prepared once for all layers."""

    mask: RowMask
    others: Any  # the metadata for vLLM's kernel; None if every request has a mask
    masked: tuple[Masked, ...]


def attend(
    impl: Any,
    layer: Any,
    query: torch.Tensor,  # [T, H, D]
    kv_cache: torch.Tensor,  # [N, G, P, 2 D]; the rows' own keys and values are in it
    metadata: Any,
    mask: RowMask,
    output: torch.Tensor,  # [T, H, D], written
    kernel: Callable[[Any], Any],  # vLLM's, over the whole batch; takes the metadata
) -> None:
    """Write every row's output."""
    step = getattr(metadata, "masked_step", None)
    if step is None or step.mask is not mask:
        step = metadata.masked_step = _prepare(impl, layer, metadata, mask, query.dtype, kv_cache.shape[2])
    if step.others is not None:
        kernel(step.others)
    pages = packing(layer.isa, kv_cache.shape[2], impl.head_size, kv_cache.dtype)
    for request in step.masked:
        keys, values = pages.read(kv_cache, request.pages)
        keys, values = keys[:, : request.length], values[:, : request.length]
        output[request.rows] = _attend(query[request.rows].float(), keys, values, request.bias, impl.scale)


def _attend(
    query: torch.Tensor,  # [T, H, D] float32
    keys: torch.Tensor,  # [G, S, D] float32, the request's own rows last
    values: torch.Tensor,  # [G, S, D] float32
    bias: torch.Tensor,  # [T, T] float32
    scale: float,
) -> torch.Tensor:  # [T, H, D] float32
    heads, (groups, length, _) = query.shape[1], keys.shape
    own = len(bias)
    outputs = []
    size = max(1, SCORES // (heads * length))
    for rows, among in zip(query.split(size), bias.split(size), strict=True):
        count = len(rows)
        grouped = (rows * scale).unflatten(1, (groups, -1)).permute(1, 2, 0, 3)  # [G, H / G, rows, D]
        scores = torch.bmm(grouped.flatten(1, 2), keys.transpose(1, 2))
        scores.view(groups, -1, count, length)[..., length - own :] += among
        out = torch.bmm(scores.softmax(dim=-1), values)  # [G, H / G · rows, D]
        outputs.append(out.view(groups, -1, count, out.shape[-1]).permute(2, 0, 1, 3).flatten(1, 2))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _prepare(impl: Any, layer: Any, metadata: Any, mask: RowMask, dtype: torch.dtype, page_size: int) -> Step:
    starts, lengths = metadata.query_start_loc.tolist(), metadata.seq_lens.tolist()  # host tensors
    masked = []
    for request in mask.requests.tolist():
        rows, length = slice(starts[request], starts[request + 1]), lengths[request]
        among = unpack(mask.bits[rows], rows.stop - rows.start)
        bias = torch.zeros(among.shape).masked_fill_(~among, float("-inf"))
        pages = metadata.block_table[request, : -(-length // page_size)].long()
        masked.append(Masked(rows, length, pages, bias))
    others = None
    if len(masked) < len(lengths):
        others = _without_prefix(impl, layer, metadata, mask, dtype)
    return Step(mask, others, tuple(masked))


def _without_prefix(impl: Any, layer: Any, metadata: Any, mask: RowMask, dtype: torch.dtype) -> Any:
    """The metadata with the prefixes of the requests with masks cut off."""
    masked = torch.from_numpy(mask.requests)
    lengths = metadata.seq_lens.clone()
    lengths[masked] = metadata.query_start_loc.diff()[masked]
    schedule = cpu_attn_get_scheduler_metadata(
        num_reqs=len(lengths),
        num_heads=impl.num_heads,
        num_kv_heads=impl.num_kv_heads,
        head_dim=impl.head_size,
        seq_lens=lengths,
        dtype=dtype,
        query_start_loc=metadata.query_start_loc,
        causal=metadata.causal,
        sliding_window_size=impl.sliding_window,
        isa=layer.isa,
        enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
        dynamic_causal=metadata.dynamic_causal,
        kv_cache_dtype=impl.kv_cache_dtype,
    )
    return replace(metadata, seq_lens=lengths, scheduler_metadata=schedule)
