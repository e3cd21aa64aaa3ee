"""Attention with row masks on a GPU, beside FLASH_ATTN or TRITON_ATTN: launches the kernels of `bitset.py`.

If only some requests of the batch have a mask, vLLM's kernel runs over the whole batch first, and the rows of the
others are overwritten; FlashAttention plans a whole batch ahead, so a part of it cannot be left out. If all have one,
vLLM's kernel does not run.

Nothing here waits for the device. Grids and buffers depend on shapes only, so the kernels can be captured in a CUDA
graph; see `RowMask` for what the graph's mask must be. `xformers.py` launches a library's kernels instead.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from vllm.triton_utils import triton
from vllm.utils.torch_utils import async_tensor_h2d

from attention_backend.kernels.bitset import attend_kernel, merge_kernel
from attention_backend.rows import WORD, RowMask

LANES = 64  # rows x query heads of a program
WAVES = 2  # programs per multiprocessor to aim for when keys are split
MAX_SEGMENTS = 16
SHORTEST_SEGMENT = 256  # keys: below that, merging costs more than it saves


def attend(
    impl: Any,
    layer: Any,
    query: torch.Tensor,  # [T, H, D]
    kv_cache: torch.Tensor,  # [N, G, P, 2 D]; the rows' own keys and values are in it
    metadata: Any,
    mask: RowMask,
    output: torch.Tensor,  # [T, H, D], written
    kernel: Callable[[Any], Any],  # vLLM's, over the whole batch; takes the metadata
    *,
    run: Callable[..., None] | None = None,  # `launch`, or another library's
) -> None:
    """Write every row's output."""
    requests = None
    if len(mask.requests) < len(metadata.seq_lens):
        kernel(metadata)
        requests = _on_device(metadata, mask, query.device)
    longest = min(metadata.max_query_len, WORD * mask.bits.shape[1])
    count, groups = len(mask.requests), kv_cache.shape[1]
    programs = count * groups * triton.cdiv(longest * query.shape[1] // groups, LANES)
    (run or launch)(
        query,
        kv_cache,
        mask.bits,
        requests,
        count,
        metadata.query_start_loc,
        metadata.seq_lens,
        metadata.block_table,
        longest,
        impl.scale,
        output,
        segments(programs, metadata.max_seq_len, _multiprocessors(query.device)),
    )


def segments(programs: int, length: int, multiprocessors: int) -> int:
    """How many parts to split the keys into: enough to fill the device, none too short. A power of 2."""
    wanted = WAVES * multiprocessors // max(programs, 1)
    most = min(wanted, length // SHORTEST_SEGMENT, MAX_SEGMENTS)
    return 1 << (max(most, 1).bit_length() - 1)


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
    segments: int,  # a power of 2
) -> None:
    """Run the kernels."""
    heads, size = query.shape[1:]
    groups, page_size = kv_cache.shape[1:3]
    sharing = heads // groups
    rows = max(1, LANES // sharing)
    width = triton.next_power_of_2(size)
    listed = lengths if requests is None else requests  # any pointer, if it is not read
    partial = share = output
    if segments > 1:
        partial = torch.empty((count, longest, heads, segments, size), dtype=torch.float32, device=query.device)
        share = torch.empty((count, longest, heads, segments), dtype=torch.float32, device=query.device)
    common = {"ALL": requests is None, "SEGMENTS": segments, "SIZE": size, "WIDTH": width}
    attend_kernel[triton.cdiv(longest, rows), groups, count * segments](
        output,
        partial,
        share,
        query,
        kv_cache,
        bits,
        listed,
        starts,
        lengths,
        table,
        scale,
        bits.stride(0),
        longest,
        heads,
        *output.stride()[:2],
        *query.stride()[:2],
        *kv_cache.stride()[:3],
        table.stride(0),
        SHARING=sharing,
        ROWS=rows,
        LANES=max(16, triton.next_power_of_2(rows * sharing)),
        KEYS=32 if query.dtype == torch.float32 else 64,
        PAGE=page_size,
        **common,
    )
    if segments > 1:
        merge_kernel[longest, heads, count](
            output, partial, share, listed, starts, longest, heads, *output.stride()[:2], **common
        )


def _on_device(metadata: Any, mask: RowMask, device: torch.device) -> torch.Tensor:  # [M] int32
    """The requests with a mask, copied once per step."""
    known = getattr(metadata, "masked_requests", None)
    if known is None or known[0] is not mask:
        known = metadata.masked_requests = mask, async_tensor_h2d(mask.requests, device, torch.int32)
    return known[1]


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
