"""Triton kernels for attention with row masks: one over a request's pages, one that merges partial results.

`attend_kernel` is FlashAttention's online softmax over keys in the paged cache, where keys of the prefix are seen by
every row, and keys of the step's own rows by the rows that have their bit. All query heads that share a key head are
computed together. With SEGMENTS > 1 the keys are split between programs, so that a few long requests fill a GPU; each
writes a partial result, and `merge_kernel` weights these by their share of the softmax's denominator.

Letters in shapes: M requests with a mask among R, T rows, at most L per request, H query heads, G key/value heads,
D head size, N pages of P tokens, C pages per request, W words of bits.
"""

from vllm.triton_utils import tl, triton


@triton.jit(do_not_specialize=["longest", "words"])  # they change with the batch: don't compile again
def attend_kernel(
    output_ptr,  # [T, H, D], written if SEGMENTS is 1
    partial_ptr,  # [M, L, H, SEGMENTS, D] float32, written otherwise
    share_ptr,  # [M, L, H, SEGMENTS] float32, too: log2 of the segment's denominator
    query_ptr,  # [T, H, D]
    cache_ptr,  # [N, G, P, 2 D], keys then values
    bits_ptr,  # [T, W] int32
    requests_ptr,  # [M] int32; not read if ALL
    starts_ptr,  # [R + 1] int32, each request's first row
    lengths_ptr,  # [R] int32, prefix and own rows
    table_ptr,  # [R, C] int32
    scale,
    words,  # W
    longest,  # L
    heads,  # H
    output_row_stride,
    output_head_stride,
    query_row_stride,
    query_head_stride,
    page_stride,
    group_stride,
    token_stride,
    table_stride,
    ALL: tl.constexpr,  # whether every request of the batch has a mask: M = R
    SEGMENTS: tl.constexpr,
    SHARING: tl.constexpr,  # H / G, query heads per key head
    ROWS: tl.constexpr,  # of a program
    LANES: tl.constexpr,  # ROWS x SHARING or more, a power of 2, at least 16
    KEYS: tl.constexpr,  # per iteration, a power of 2, at least 16
    PAGE: tl.constexpr,  # P
    SIZE: tl.constexpr,  # D
    WIDTH: tl.constexpr,  # D or more, a power of 2
):
    """[ceil(L / ROWS), G, M x SEGMENTS] programs."""
    group = tl.program_id(1)
    entry = tl.program_id(2) // SEGMENTS
    segment = tl.program_id(2) % SEGMENTS
    request = entry
    if not ALL:
        request = tl.load(requests_ptr + entry)
    first = tl.load(starts_ptr + request)
    rows = tl.load(starts_ptr + request + 1) - first
    if tl.program_id(0) * ROWS >= rows:
        return
    length = tl.load(lengths_ptr + request)
    prefix = length - rows

    lane = tl.arange(0, LANES)
    row = tl.program_id(0) * ROWS + lane // SHARING
    head = group * SHARING + lane % SHARING
    active = (lane < ROWS * SHARING) & (row < rows)
    element = tl.arange(0, WIDTH)
    whole = element < SIZE
    query_at = (first + row).to(tl.int64) * query_row_stride + head * query_head_stride
    query = tl.load(query_ptr + query_at[:, None] + element[None, :], active[:, None] & whole[None, :], other=0.0)

    best = tl.full([LANES], float("-inf"), tl.float32)
    total = tl.zeros([LANES], tl.float32)
    summed = tl.zeros([LANES, WIDTH], tl.float32)
    part = tl.cdiv(tl.cdiv(length, KEYS), SEGMENTS) * KEYS
    end = tl.minimum((segment + 1) * part, length)
    for start in range(segment * part, end, KEYS):
        key = start + tl.arange(0, KEYS)
        inside = key < end
        page = tl.load(table_ptr + request.to(tl.int64) * table_stride + key // PAGE, inside, other=0).to(tl.int64)
        cache_at = page * page_stride + group * group_stride + (key % PAGE) * token_stride
        keys = tl.load(cache_ptr + cache_at[None, :] + element[:, None], inside[None, :] & whole[:, None], other=0.0)
        scores = tl.dot(query, keys, input_precision="ieee") * (scale * 1.4426950408889634)  # log2(e)
        sees = active[:, None] & inside[None, :]
        if start + KEYS > prefix:
            own = tl.maximum(key - prefix, 0)
            bits_at = (first + row)[:, None] * words + (own // 32)[None, :]
            word = tl.load(bits_ptr + bits_at, sees & (key >= prefix)[None, :], other=-1)
            sees = sees & (((word >> (own % 32)[None, :]) & 1) == 1)
        scores = tl.where(sees, scores, float("-inf"))
        better = tl.maximum(best, tl.max(scores, 1))
        base = tl.where(better == float("-inf"), 0.0, better)  # a row that sees nothing yet
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(best - base)
        total = total * shrink + tl.sum(weights, 1)
        values = tl.load(
            cache_ptr + SIZE + cache_at[:, None] + element[None, :], inside[:, None] & whole[None, :], other=0.0
        )
        summed = summed * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        best = better

    result = summed / tl.where(total > 0, total, 1.0)[:, None]
    stored = active[:, None] & whole[None, :]
    if SEGMENTS == 1:
        output_at = (first + row).to(tl.int64) * output_row_stride + head * output_head_stride
        tl.store(output_ptr + output_at[:, None] + element[None, :], result.to(output_ptr.dtype.element_ty), stored)
    else:
        at = ((entry.to(tl.int64) * longest + row) * heads + head) * SEGMENTS + segment
        tl.store(partial_ptr + at[:, None] * SIZE + element[None, :], result, stored)
        share = tl.where(total > 0, best + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
        tl.store(share_ptr + at, share, active)


@triton.jit(do_not_specialize=["longest"])  # as above
def merge_kernel(
    output_ptr,  # [T, H, D], written
    partial_ptr,  # [M, L, H, SEGMENTS, D] float32
    share_ptr,  # [M, L, H, SEGMENTS] float32
    requests_ptr,  # [M] int32; not read if ALL
    starts_ptr,  # [R + 1] int32
    longest,  # L
    heads,  # H
    output_row_stride,
    output_head_stride,
    ALL: tl.constexpr,
    SEGMENTS: tl.constexpr,  # a power of 2
    SIZE: tl.constexpr,  # D
    WIDTH: tl.constexpr,  # D or more, a power of 2
):
    """[L, H, M] programs."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    entry = tl.program_id(2)
    request = entry
    if not ALL:
        request = tl.load(requests_ptr + entry)
    first = tl.load(starts_ptr + request)
    if row >= tl.load(starts_ptr + request + 1) - first:
        return
    segment = tl.arange(0, SEGMENTS)
    element = tl.arange(0, WIDTH)
    whole = element < SIZE
    at = ((entry.to(tl.int64) * longest + row) * heads + head) * SEGMENTS + segment
    share = tl.load(share_ptr + at)
    best = tl.max(share, 0)
    weights = tl.exp2(share - tl.where(best == float("-inf"), 0.0, best))
    partial = tl.load(partial_ptr + at[:, None] * SIZE + element[None, :], whole[None, :], other=0.0)
    result = tl.sum(partial * weights[:, None], 0) / tl.maximum(tl.sum(weights, 0), 1e-30)
    output_at = (first + row).to(tl.int64) * output_row_stride + head * output_head_stride
    tl.store(output_ptr + output_at + element, result.to(output_ptr.dtype.element_ty), whole)
