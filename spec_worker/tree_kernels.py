"""The Triton kernels of draft trees: one grows them, one masks the rows of the forward that verifies them, one walks
the path that the samples take. The second one also masks groups of masks, see `mask_groups.py`.

A tree has a row for its anchor, row 0, and one for each node; `parents` says which row each one follows. Parents come
before their children and the likeliest nodes first, so a tree may be cut anywhere. On a CPU native twins run, see
`vllm_nld.triton_cpu`. Letters in shapes: M trees, N state slots, P rows of the largest tree, C candidate positions, T
tokens of the target's forward, L rows of logits, R requests, B tokens per block, W words of 32 bits per row, G groups.
"""

from vllm.triton_utils import tl, triton

CAUSAL, TREE, GROUPS = 0, 1, 2  # what the rows of a request are


@triton.jit
def grow_trees_kernel(
    parents_ptr,  # [N, P] int32, written; -1 for the anchor, and for a row without a node
    tokens_ptr,  # [N, P - 1] int64, written: the nodes' tokens; the mask token where there is no node
    plan_ptr,  # [5, M] int64: slot, nodes, block, tokens per block, first candidate position
    starts_ptr,  # [*] int64, positions of the anchors, by block
    candidates_ptr,  # [C, TOP] int64, the likeliest tokens of each position
    log_probs_ptr,  # [C, TOP] float32, descending
    trees,  # M
    width,  # P
    mask_token_id,
    max_model_len,
    TOP: tl.constexpr,
    WIDTH: tl.constexpr,  # more than the nodes of the largest tree, a power of 2
):
    """[M] programs. Each step takes the likeliest child of any row that is not in the tree yet.

    Of equally likely ones it takes the one with the earliest parent. A path's probability is that of its tokens.
    """
    tree = tl.program_id(0)
    slot = tl.load(plan_ptr + tree)
    nodes = tl.load(plan_ptr + trees + tree).to(tl.int32)
    start = tl.load(starts_ptr + tl.load(plan_ptr + 2 * trees + tree))
    deepest = tl.minimum(tl.load(plan_ptr + 3 * trees + tree), max_model_len - start) - 1
    first = tl.load(plan_ptr + 4 * trees + tree)
    lane = tl.arange(0, WIDTH)
    total = tl.zeros([WIDTH], tl.float64)  # of each row: the log probability of its path
    depth = tl.zeros([WIDTH], tl.int32)
    rank = tl.zeros([WIDTH], tl.int32)  # of the row's likeliest child that is not in the tree yet
    best = tl.load(log_probs_ptr + first * TOP, deepest > 0, other=float("-inf")).to(tl.float64)
    child = tl.where(lane == 0, best, float("-inf"))  # the total of that child
    tl.store(parents_ptr + slot * width, -1)
    for node in range(1, nodes + 1):
        best = tl.max(child, axis=0)
        found = best > float("-inf")
        parent = tl.min(tl.where(child == best, lane, WIDTH - 1), axis=0)
        chosen = lane == parent
        above = tl.sum(tl.where(chosen, depth, 0), axis=0)
        of_parent = tl.sum(tl.where(chosen, total, 0.0), axis=0)
        own = tl.sum(tl.where(chosen, rank, 0), axis=0)
        place = first + above
        token = tl.load(candidates_ptr + place * TOP + own, found, other=mask_token_id)
        tl.store(parents_ptr + slot * width + node, tl.where(found, parent, -1))
        tl.store(tokens_ptr + slot * (width - 1) + node - 1, token)
        next_log_prob = tl.load(log_probs_ptr + place * TOP + own + 1, found & (own + 1 < TOP), other=float("-inf"))
        below = tl.load(log_probs_ptr + (place + 1) * TOP, found & (above + 1 < deepest), other=float("-inf"))
        child = tl.where(chosen, of_parent + next_log_prob.to(tl.float64), child)
        child = tl.where(lane == node, best + below.to(tl.float64), child)
        rank = tl.where(chosen, own + 1, rank)
        total = tl.where(lane == node, best, total)
        depth = tl.where(lane == node, above + 1, depth)


@triton.jit
def first_bits(word, count):
    """Words with the first `count` bits set."""
    inside = tl.minimum(tl.maximum(count - 32 * word, 0), 32)
    return tl.where(inside == 32, -1, (1 << (inside % 32)) - 1)


@triton.jit
def mask_rows_kernel(
    bits_ptr,  # [T, W] int32, written: bit j of a row: it sees row j of its request
    positions_ptr,  # [T] int64; written for trees and groups: where a row would stand in a sequence
    plan_ptr,  # [6, M] int64: first row, number of rows, slot, what the rows are, drafts before and masks in a group
    parents_ptr,  # [N, P] int32, of trees
    ends_ptr,  # [N, G] int32, of groups: the row that each continues
    requests,  # M
    width,  # P
    groups,  # G
    words,  # W
    last_position,
    WORDS: tl.constexpr,  # W or more, a power of 2
    TREE: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """[M, most rows] programs. A node sees its ancestors and itself; other rows are causal, but for masks.

    A mask sees the rows up to its group's end, and all of its group, which follows that end. Rows past the last group
    belong to none, and nobody reads what they give.
    """
    request, row = tl.program_id(0), tl.program_id(1)
    first = tl.load(plan_ptr + request)
    if row < tl.load(plan_ptr + requests + request):
        slot = tl.load(plan_ptr + 2 * requests + request)
        kind = tl.load(plan_ptr + 3 * requests + request)
        masked = row - 1 - tl.load(plan_ptr + 4 * requests + request).to(tl.int32)
        size = tl.load(plan_ptr + 5 * requests + request).to(tl.int32)
        word = tl.arange(0, WORDS)
        bits = first_bits(word, row + 1)
        if kind == TREE:
            bits = tl.zeros([WORDS], tl.int32)
            seen = row
            depth = -1
            while seen >= 0:
                bits = tl.where(word == seen // 32, bits | (1 << (seen % 32)), bits)
                depth += 1
                seen = tl.load(parents_ptr + slot * width + seen)
            tl.store(positions_ptr + first + row, tl.load(positions_ptr + first) + depth)
        if (kind == GROUPS) & (masked >= 0):
            group = tl.minimum(masked // size, groups - 1)
            end = tl.load(ends_ptr + slot * groups + group)
            own = row - masked % size
            bits = first_bits(word, end + 1) | (first_bits(word, own + size) & ~first_bits(word, own))
            position = tl.load(positions_ptr + first) + end + 1 + masked % size
            tl.store(positions_ptr + first + row, tl.minimum(position, last_position))
        tl.store(bits_ptr + (first + row) * words + word, bits, word < words)


@triton.jit
def walk_trees_kernel(
    out_ptr,  # [R, *] int64, written for trees: the samples along the path, the last of which is the bonus token
    out_stride,
    count_ptr,  # [R] int32, written for trees: the length of the path, including the anchor
    path_ptr,  # [N, B] int32, written for trees: the rows of the path
    order_ptr,  # [L] int64, written for trees: the rows of the path come first
    plan_ptr,  # [3, M] int64: request, slot, and whether it is a tree, not a chain
    parents_ptr,  # [N, P] int32, of trees
    cu_num_logits_ptr,  # [R + 1] int32
    sampled_ptr,  # [L] int64, the sample after each row
    tokens_ptr,  # [L] int32, the token of each row
    trees,  # M
    width,  # P
    block_length,  # B
    WIDTH: tl.constexpr,  # P or more, a power of 2
):
    """[M] programs. From the anchor on, follow the child that holds the sample, as long as there is one.

    In a chain each row follows the one before it.
    """
    tree = tl.program_id(0)
    request = tl.load(plan_ptr + tree)
    slot = tl.load(plan_ptr + trees + tree)
    first = tl.load(cu_num_logits_ptr + request)
    rows = tl.load(cu_num_logits_ptr + request + 1) - first
    lane = tl.arange(0, WIDTH)
    parents = tl.load(parents_ptr + slot * width + lane, lane < rows, other=-1)
    parents = tl.where(tl.load(plan_ptr + 2 * trees + tree) != 0, parents, lane - 1)
    tokens = tl.load(tokens_ptr + first + lane, lane < rows, other=-1)
    row = 0
    length = 0
    while row >= 0:
        sample = tl.load(sampled_ptr + first + row)
        tl.store(out_ptr + request * out_stride + length, sample)
        tl.store(path_ptr + slot * block_length + length, row)
        tl.store(order_ptr + first + length, first + row)
        length += 1
        row = tl.max(tl.where((parents == row) & (tokens == sample), lane, -1), axis=0)
    tl.store(count_ptr + request, length)
