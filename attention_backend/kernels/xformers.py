"""Attention with row masks on a GPU by xformers: the prefix and the own rows apart, merged by their log-sum-exp.

The prefix is memory-efficient attention over vLLM's pages, without a mask; the own rows are dense attention with their
bits as a bias; `merge_attentions` joins both. All three are Triton kernels: xformers' compiled part is built for
CUDA 12 and does not load beside CUDA 13's torch, but nothing here needs it.

It is not the default (`bitset.py` is), because it does more for the same result: it copies the rows and their keys,
expands the bits to a bias of one number per pair of rows, rounds two results before it merges them, and reads 16 keys
at a time, as many as vLLM's smallest page has. It takes float16 and bfloat16 and vLLM's default cache layout only, and
needs a Triton that still has block pointers: 3.7, which torch 2.13 requires, has them, 3.9 does not.
"""

from functools import cache
from typing import Any

import torch
from xformers.ops import fmha
from xformers.ops.fmha.attn_bias import PagedBlockDiagonalPaddedKeysMask, _PaddedSeqLenInfo, _SeqLenInfo

from attention_backend.kernels import gpu
from attention_backend.rows import unpack


class Prefix(fmha.triton_splitk.FwOp):
    """Over pages, whose size must be a multiple of BLOCK_N."""

    NAME = "nld_prefix"
    BLOCK_N = 16


class Own(fmha.triton_splitk.FwOp):
    """With a bias, which excludes splitting the keys."""

    NAME = "nld_own"
    BLOCK_N = 16
    SPLIT_K = 1


def launch(
    query: torch.Tensor,  # [T, H, D]
    kv_cache: torch.Tensor,  # [N, G, P, 2 D]
    bits: torch.Tensor,  # [T, W] int32
    requests: torch.Tensor | None,  # [M] int32; None: all
    count: int,  # M
    starts: torch.Tensor,  # [R + 1] int32
    lengths: torch.Tensor,  # [R] int32
    table: torch.Tensor,  # [R, C] int32
    longest: int,  # L, an upper bound of the rows per request
    scale: float,
    output: torch.Tensor,  # [T, H, D], the rows of these requests are written
    segments: int,  # not used: xformers decides how to split keys
) -> None:
    """As `gpu.launch`. Requests are padded to L rows that repeat their last one."""
    groups, page_size = kv_cache.shape[1:3]
    first, rows = starts[:-1], starts.diff()
    if requests is not None:
        first, rows, lengths, table = (x[requests.long()] for x in (first, rows, lengths, table))
    prefix = lengths - rows
    place = torch.arange(longest, device=query.device)
    row = place.minimum(rows[:, None] - 1)  # [M, L]
    at = (first[:, None] + row).clamp(min=0)
    queries = query[at].unflatten(2, (groups, -1))  # [M, L, G, H / G, D]
    shape = (*queries.shape[3:4], 2 * queries.shape[4])

    tokens = _tokens(kv_cache)[None, :, :, None].expand(-1, -1, -1, *shape)  # [1, N · P, G, H / G, 2 D]
    pages = PagedBlockDiagonalPaddedKeysMask(
        _queries(count, longest, query.device), _prefixes(prefix, table.shape[1] * page_size), table, page_size
    )
    seen, seen_share = fmha.memory_efficient_attention_partial(
        queries.flatten(0, 1)[None], *tokens.chunk(2, dim=-1), attn_bias=pages, scale=scale, op=Prefix
    )
    seen, seen_share = seen.view_as(queries), seen_share[0].unflatten(-1, (count, longest)).permute(2, 0, 1, 3)
    empty = (prefix == 0)[:, None, None, None]
    seen = seen.masked_fill(empty[..., None], 0)
    seen_share = seen_share.masked_fill(empty, float("-inf"))

    position = (prefix[:, None] + row).clamp(min=0)
    own = kv_cache[table.gather(1, position // page_size), :, position % page_size]  # [M, L, G, 2 D]
    sees = unpack(bits[at], longest) & (place < rows[:, None])[:, None]  # [M, L, L]
    bias = torch.zeros(sees.shape, dtype=query.dtype, device=query.device).masked_fill_(~sees, float("-inf"))
    new, new_share = fmha.memory_efficient_attention_partial(
        queries,
        *own[:, :, :, None].expand(-1, -1, -1, *shape).chunk(2, dim=-1),
        attn_bias=bias[:, None, None].expand(-1, groups, shape[0], -1, -1),
        scale=scale,
        op=Own,
    )

    shares = [seen_share.contiguous(), new_share]
    merged, _ = fmha.merge_attentions([seen, new], shares, write_lse=False, output_dtype=output.dtype)
    spare = torch.cat([output, output[:1]])  # the last row takes what padding gives
    spare[torch.where(place < rows[:, None], at, len(output))] = merged.flatten(2, 3)
    output.copy_(spare[:-1])


def attend(*arguments: Any) -> None:
    """As `gpu.attend`, with xformers' kernels."""
    gpu.attend(*arguments, run=launch)


def _tokens(kv_cache: torch.Tensor) -> torch.Tensor:  # [N · P, G, 2 D]
    pages, groups, page_size, width = kv_cache.shape
    page, group, token, element = kv_cache.stride()
    if page != page_size * token:
        raise ValueError("xformers needs a KV cache with the tokens of its pages in a row: VLLM_KV_CACHE_LAYOUT=LBNHC")
    return kv_cache.as_strided((pages * page_size, groups, width), (token, group, element))


@cache
def _queries(count: int, longest: int, device: torch.device) -> Any:
    return _SeqLenInfo.from_seqlens([longest] * count).to(device)


def _prefixes(
    prefix: torch.Tensor,  # [M] int32
    most: int,  # an upper bound of the prefixes
) -> Any:
    """As xformers describes keys. It takes lengths on the device; those on the host are bounds for checks."""
    count = len(prefix)
    return _PaddedSeqLenInfo(
        seqstart=prefix,  # not read
        max_seqlen=most,
        min_seqlen=0,
        seqstart_py=[most * index for index in range(count + 1)],
        seqlen=prefix,
        seqlen_py=[most] * count,
        padding=most,
    )
