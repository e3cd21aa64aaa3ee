"""The Triton kernels of a draft pass: one starts the blocks, one writes the inputs of a forward over them.

Each replaces dozens of small tensor operations by one launch, and nothing waits for the device. On a CPU their native
twins run, see `vllm_nld.triton_cpu`.

A block is [anchor, mask x (B - 1)], right after the tokens that the target forward kept. Its KV only goes into
lookahead slots: past the computed tokens, in KV blocks that the request owns. Letters in shapes: R blocks, at most B
tokens per block, K = B - 1 drafts, T tokens of the target's forward, S requests in its batch, N state slots, at most W
KV blocks per request.
"""

from vllm.triton_utils import tl, triton


@triton.jit
def lay_blocks_kernel(
    starts_ptr,  # [R] int64, written: positions of the anchors
    ids_ptr,  # [R, B] int64, written
    masked_ptr,  # [R, K] bool, written: whether there is a draft; none past the end of the context
    count_ptr,  # [N] int64, written if COUNT: the number of drafts in a slot's block
    rows_ptr,  # [R] int64, each block's request in the batch
    lengths_ptr,  # [R] int64, tokens per block
    positions_ptr,  # [T] int64; read for each request's first row only: a tree's other rows have their depth's
    query_start_loc_ptr,  # [S + 1] int32, each request's first row in T
    idx_mapping_ptr,  # [S] int32, each request's state slot
    num_sampled_ptr,  # [S] int32, tokens accepted now, including the bonus token; 0 inside a prompt
    num_rejected_ptr,  # [S] int32, rejected drafts, at the end of the request's rows
    last_sampled_ptr,  # [N] int64
    next_prompt_ptr,  # [N] int32, the first prompt token that is not computed yet
    mask_token_id,
    block_length,  # B
    max_model_len,
    COUNT: tl.constexpr,
    WIDTH: tl.constexpr,  # B or more, a power of 2
):
    """[R] programs. The anchor is the last accepted token, whose KV is not in the cache yet."""
    block = tl.program_id(0)
    row = tl.load(rows_ptr + block)
    slot = tl.load(idx_mapping_ptr + row)
    first = tl.load(query_start_loc_ptr + row)
    kept = tl.load(query_start_loc_ptr + row + 1) - first - tl.load(num_rejected_ptr + row)
    start = tl.load(positions_ptr + first) + kept
    if tl.load(num_sampled_ptr + row) > 0:
        anchor = tl.load(last_sampled_ptr + slot)
    else:
        anchor = tl.load(next_prompt_ptr + slot).to(tl.int64)
    drafts = tl.minimum(tl.load(lengths_ptr + block), max_model_len - start) - 1
    place = tl.arange(0, WIDTH)
    tl.store(starts_ptr + block, start)
    tl.store(ids_ptr + block * block_length + place, tl.where(place == 0, anchor, mask_token_id), place < block_length)
    tl.store(masked_ptr + block * (block_length - 1) + place, place < drafts, place < block_length - 1)
    if COUNT:
        tl.store(count_ptr + slot, tl.maximum(drafts, 0))


@triton.jit
def fill_pass_kernel(
    input_ids_ptr,  # [tokens] int32, written
    positions_ptr,  # [tokens] int64, written; past the end of the context, the last position repeats and is not used
    slots_ptr,  # [tokens] int64, written; NO_SLOT past the end of the block, the context or the owned KV blocks
    query_start_loc_ptr,  # [requests + 1] int32, written
    seq_lens_ptr,  # [requests] int32, written: the prefix and the part of the block that has slots
    table_out_ptr,  # [requests, W] int32, written
    plan_ptr,  # [5, R] int64: see `Pass.plan`
    ids_ptr,  # [*, B] int64, indexed by the plan, like the next three
    starts_ptr,  # [*] int64
    table_ptr,  # [*, W] int32, KV block ids; entries past the owned ones are stale
    owned_ptr,  # [*] int32, KV blocks that each request owns
    blocks,  # R
    total,  # tokens of the blocks
    requests,  # at least R; padded requests have zero length
    tokens,  # at least total; padded tokens have NO_SLOT
    block_length,  # B
    table_width,  # W
    kv_block_size,
    max_model_len,
    WRITE: tl.constexpr,  # whether to write any KV
    NO_SLOT: tl.constexpr,
    WIDTH: tl.constexpr,  # B or more, a power of 2
):
    """[requests + 1] programs: one per block or padded request, and one for padded tokens."""
    request = tl.program_id(0)
    lane = tl.arange(0, WIDTH)
    if request < blocks:
        block = tl.load(plan_ptr + request)
        row = tl.load(plan_ptr + blocks + request)
        owned = tl.load(owned_ptr + tl.load(plan_ptr + 2 * blocks + request))
        length = tl.load(plan_ptr + 3 * blocks + request)
        first = tl.load(plan_ptr + 4 * blocks + request)
        start = tl.load(starts_ptr + block)
        position = start + lane
        column = position // kv_block_size
        inside = lane < length
        has_slot = inside & (column < owned) & (position < max_model_len)
        if not WRITE:
            has_slot = lane < 0
        kv_block = tl.load(table_ptr + row * table_width + column, has_slot, other=0).to(tl.int64)
        slot = tl.where(has_slot, kv_block * kv_block_size + position % kv_block_size, NO_SLOT)
        tl.store(input_ids_ptr + first + lane, tl.load(ids_ptr + block * block_length + lane, inside, other=0), inside)
        tl.store(positions_ptr + first + lane, tl.minimum(position, max_model_len - 1), inside)
        tl.store(slots_ptr + first + lane, slot, inside)
        tl.store(query_start_loc_ptr + request, first)
        room = tl.minimum(owned * kv_block_size, max_model_len)
        tl.store(seq_lens_ptr + request, tl.maximum(tl.minimum(start + length, room), length))
        for at in range(0, owned, WIDTH):
            entry = tl.load(table_ptr + row * table_width + at + lane, at + lane < owned, other=0)
            tl.store(table_out_ptr + request * table_width + at + lane, entry, at + lane < owned)
    else:
        tl.store(query_start_loc_ptr + request, total)
        if request < requests:
            tl.store(seq_lens_ptr + request, 0)
            for at in range(0, table_width, WIDTH):
                null = tl.zeros([WIDTH], tl.int32)
                tl.store(table_out_ptr + request * table_width + at + lane, null, at + lane < table_width)
        else:
            for at in range(total, tokens, WIDTH):
                padded = at + lane < tokens
                tl.store(input_ids_ptr + at + lane, tl.zeros([WIDTH], tl.int32), padded)
                tl.store(positions_ptr + at + lane, tl.zeros([WIDTH], tl.int64), padded)
                tl.store(slots_ptr + at + lane, tl.full([WIDTH], NO_SLOT, tl.int64), padded)
