"""Attention with row masks on the CPU, beside vLLM's kernel, which takes no mask.

Requests with a mask: read their pages and compute softmax(scale · q · k + bias) · v in float32. Requests of similar
size are padded to the largest of them, and share two matrix products and a softmax per layer.

The other requests of the batch keep vLLM's kernel. It takes whole batches only, so for its sake a request with a mask
pretends to have no prefix: that costs next to nothing, and its output is overwritten.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from vllm import envs
from vllm._custom_ops import cpu_attn_get_scheduler_metadata

from attention_backend.kernels.pages import packing
from attention_backend.rows import RowMask, unpack

SCORES = 1 << 24  # scores held at once, 64 MiB; also the keys, and the values, of requests that are computed at once
SIMILAR = 1.5  # requests are padded to at most this many times their rows and tokens


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """R requests with a mask, padded to T rows, n pages and S tokens."""

    rows: torch.Tensor | slice  # [R · T] int64, rows of the step; a shorter request's last row is there again
    pages: torch.Tensor  # [R, n] int64; likewise
    length: int  # S
    bias: torch.Tensor  # [R, T, W] float32, 0 or -inf, added to the scores of the last W tokens
    padded: tuple[tuple[int, int], ...]  # which requests are shorter, and their tokens


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A step, prepared once for all layers."""

    mask: RowMask
    others: Any  # the metadata for vLLM's kernel; None if every request has a mask
    batches: tuple[Batch, ...]


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
    for batch in step.batches:
        keys, values = (tokens[:, : batch.length] for tokens in pages.read(kv_cache, batch.pages))
        groups = len(keys) // len(batch.bias)
        for request, length in batch.padded:  # a NaN that an earlier request has left there would count
            for tokens in (keys, values):
                tokens[request * groups : (request + 1) * groups, length:] = 0
        asked = query[batch.rows].float().view(*batch.bias.shape[:2], *query.shape[1:])
        output[batch.rows] = _attend(asked, keys, values, batch.bias, impl.scale).flatten(0, 1).to(output.dtype)


def _attend(
    query: torch.Tensor,  # [R, T, H, D] float32
    keys: torch.Tensor,  # [R · G, S, D] float32
    values: torch.Tensor,  # [R · G, S, D] float32
    bias: torch.Tensor,  # [R, T, W] float32
    scale: float,
) -> torch.Tensor:  # [R, T, H, D] float32
    requests, heads, length, width = len(query), query.shape[2], keys.shape[1], bias.shape[2]
    outputs = []
    size = max(1, SCORES // (requests * heads * length))
    for rows, among in zip(query.split(size, dim=1), bias.split(size, dim=1), strict=True):
        grouped = (rows * scale).unflatten(2, (len(keys) // requests, -1)).permute(0, 2, 3, 1, 4)
        shape = grouped.shape  # [R, G, H / G, rows, D]
        scores = torch.bmm(grouped.flatten(2, 3).flatten(0, 1), keys.transpose(1, 2))  # [R · G, H / G · rows, S]
        scores.view(*shape[:4], length)[..., length - width :] += among[:, None, None]
        out = torch.bmm(scores.softmax(dim=-1), values)
        outputs.append(out.view(shape).permute(0, 3, 1, 2, 4).flatten(2, 3))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def _prepare(impl: Any, layer: Any, metadata: Any, mask: RowMask, dtype: torch.dtype, page_size: int) -> Step:
    rows = metadata.query_start_loc.diff().numpy()[mask.requests].tolist()  # host tensors
    lengths = metadata.seq_lens.numpy()[mask.requests].tolist()
    width = impl.num_kv_heads * impl.head_size
    alike = (mask.requests[some] for some in _alike(rows, lengths, impl.num_heads, width))
    batches = tuple(_batch(metadata, mask, requests, page_size) for requests in alike)
    others = None
    if len(rows) < len(metadata.seq_lens):
        others = _without_prefix(impl, layer, metadata, mask, dtype)
    return Step(mask, others, batches)


def _alike(rows: list[int], lengths: list[int], heads: int, width: int) -> list[list[int]]:
    """Which requests, of so many rows and tokens, to compute at once, as their indices. width: of a token's key."""
    found: list[list[int]] = []
    least = most = (0, 0)
    for index in sorted(range(len(rows)), key=lambda index: (lengths[index], rows[index])):
        size = rows[index], lengths[index]
        grown = max(most[0], size[0]), max(most[1], size[1])
        shrunk = min(least[0], size[0]), min(least[1], size[1])
        held = (len(found[-1]) + 1) * grown[1] * max(heads * grown[0], width) if found else 0
        similar = all(large <= SIMILAR * small for large, small in zip(grown, shrunk, strict=True))
        if found and similar and held <= SCORES:
            found[-1].append(index)
            least, most = shrunk, grown
        else:
            found.append([index])
            least = most = size
    return [sorted(some) for some in found]  # their rows may be adjacent, then


def _batch(metadata: Any, mask: RowMask, requests: np.ndarray, page_size: int) -> Batch:
    starts, lengths = metadata.query_start_loc.numpy(), metadata.seq_lens.numpy()[requests]
    counts = starts[requests + 1] - starts[requests]
    most, length = int(counts.max()), int(lengths.max())
    rows = starts[requests][:, None] + np.minimum(np.arange(most), counts[:, None] - 1)
    pages = np.minimum(np.arange(-(-length // page_size)), (lengths[:, None] - 1) // page_size)
    sees = unpack(mask.bits[rows.astype(np.int64)], most).numpy()  # [R, T, T]
    first = int((lengths - counts).min())  # the tokens before it are in every row's sight
    bias = np.full((len(requests), most, length - first), -np.inf, dtype=np.float32)
    for request, (count, tokens) in enumerate(zip(counts.tolist(), lengths.tolist(), strict=True)):
        own = tokens - count - first
        bias[request, :, :own] = 0
        bias[request, :, own : own + count][sees[request, :, :count]] = 0
    flat = rows.flatten()
    adjacent = len(flat) == 1 + flat[-1] - flat[0] and (np.diff(flat) == 1).all()
    return Batch(
        slice(int(flat[0]), int(flat[-1]) + 1) if adjacent else torch.from_numpy(flat).long(),
        metadata.block_table[requests].long().gather(1, torch.from_numpy(pages).long()),
        length,
        torch.from_numpy(bias),
        tuple((request, tokens) for request, tokens in enumerate(lengths.tolist()) if tokens < length),
    )


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
