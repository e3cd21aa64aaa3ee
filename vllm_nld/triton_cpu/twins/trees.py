"""Draft trees: growing them, walking them, and masking rows (kernels in `spec_worker.tree_kernels`)."""

import numpy as np


def grow_trees(
    grid_0,  # M
    grid_1,
    parents,
    tokens,
    plan,
    starts,
    candidates,
    log_probs,
    trees,
    width,
    mask_token_id,
    max_model_len,
    TOP,
    WIDTH,
):
    """Per tree: repeatedly the likeliest child of any row, of equal ones the one with the earliest parent."""
    total, child = np.empty(WIDTH, dtype=np.float64), np.empty(WIDTH, dtype=np.float64)
    depth, rank = np.empty(WIDTH, dtype=np.int64), np.empty(WIDTH, dtype=np.int64)
    for tree in range(grid_0):
        slot, nodes, first = plan[tree], plan[trees + tree], plan[4 * trees + tree]
        deepest = min(plan[3 * trees + tree], max_model_len - starts[plan[2 * trees + tree]]) - 1
        total[0], depth[0], rank[0] = 0.0, 0, 0
        child[0] = log_probs[first * TOP] if deepest > 0 else -np.inf
        parents[slot * width] = -1
        for node in range(1, nodes + 1):
            parent = 0
            for row in range(1, node):
                if child[row] > child[parent]:
                    parent = row
            best = child[parent]
            child[node], total[node], rank[node] = -np.inf, best, 0
            depth[node] = depth[parent] + 1
            if not best > -np.inf:
                parents[slot * width + node] = -1
                tokens[slot * (width - 1) + node - 1] = mask_token_id
                continue
            place = (first + depth[parent]) * TOP
            parents[slot * width + node] = parent
            tokens[slot * (width - 1) + node - 1] = candidates[place + rank[parent]]
            rank[parent] += 1
            child[parent] = total[parent] + log_probs[place + rank[parent]] if rank[parent] < TOP else -np.inf
            if depth[node] < deepest:
                child[node] = best + log_probs[place + TOP]


def mask_rows(
    grid_0,  # M
    grid_1,  # the rows of the longest
    bits,
    positions,
    plan,
    parents,
    ends,
    requests,
    width,
    groups,
    words,
    last_position,
    WORDS,
    TREE,
    GROUPS,
):
    """Per row: a bit for each row that it sees, and its position if that is not its place in the cache."""
    for request in range(grid_0):
        first, rows, slot = plan[request], plan[requests + request], plan[2 * requests + request]
        kind, drafts, size = plan[3 * requests + request], plan[4 * requests + request], plan[5 * requests + request]
        for row in range(min(rows, grid_1)):
            at = (first + row) * words
            for word in range(words):
                bits[at + word] = 0
            if kind == TREE:
                seen, depth = row, -1
                while seen >= 0:
                    bits[at + seen // 32] |= np.int32(1) << np.int32(seen % 32)
                    depth += 1
                    seen = parents[slot * width + seen]
                positions[first + row] = positions[first] + depth
                continue
            masked = row - 1 - drafts
            if kind != GROUPS or masked < 0:
                for seen in range(min(row + 1, 32 * words)):
                    bits[at + seen // 32] |= np.int32(1) << np.int32(seen % 32)
                continue
            end, place = ends[slot * groups + min(masked // size, groups - 1)], masked % size
            for seen in range(end + 1):
                bits[at + seen // 32] |= np.int32(1) << np.int32(seen % 32)
            for seen in range(row - place, min(row - place + size, 32 * words)):
                bits[at + seen // 32] |= np.int32(1) << np.int32(seen % 32)
            positions[first + row] = min(positions[first] + end + 1 + place, last_position)


def walk_trees(
    grid_0,  # M
    grid_1,
    out,
    out_stride,
    count,
    path,
    order,
    plan,
    parents,
    cu_num_logits,
    sampled,
    tokens,
    trees,
    width,
    block_length,
    WIDTH,
):
    """Per tree: one look at each row, because children come after their parents."""
    for tree in range(grid_0):
        request, slot = plan[tree], plan[trees + tree]
        first, end = cu_num_logits[request], cu_num_logits[request + 1]
        last, length, chain = -1, 0, plan[2 * trees + tree] == 0
        for row in range(end - first):
            parent = row - 1 if chain else parents[slot * width + row]
            if parent == last and (row == 0 or tokens[first + row] == sampled[first + last]):
                out[request * out_stride + length] = sampled[first + row]
                path[slot * block_length + length] = row
                order[first + length] = first + row
                length += 1
                last = row
        count[request] = length
