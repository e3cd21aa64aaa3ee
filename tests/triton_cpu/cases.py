"""Random launches of our own kernels, from a seed and a few sizes: for the tests of twins, and for a GPU's kernels."""

from dataclasses import dataclass
from typing import Any

import torch

from attention_backend.rows import words
from spec_worker.tree_kernels import GROUPS, TREE
from tests.triton_cpu.harness import assert_equal, generator, ints, slots, starts

KERNELS, TREES = "spec_worker.kernels", "spec_worker.tree_kernels"
MASK, CONTEXT = 99, 40
LAST = 108  # the last position of the context that rows are masked in


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel, its grid and its arguments."""

    module: str
    kernel: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]

    def check(self) -> dict[str, Any]:
        """Assert that the kernel writes what its twin writes; returns the twin's arguments."""
        return assert_equal(self.module, self.kernel, self.grid, **self.arguments)


def lane(width: int) -> int:
    return 1 << (width - 1).bit_length()


def random_parents(g: torch.Generator, most: int, width: int) -> torch.Tensor:
    """[most, width] int32 trees, whose last rows may have no node."""
    parents = torch.full((most, width), -1, dtype=torch.int32)
    for row in range(1, width):
        parents[:, row] = (torch.rand(most, generator=g) * row).int()
    empty = ints(g, 1, width, most)
    return parents.masked_fill(torch.arange(width) >= empty[:, None], -1)


def lay_blocks(seed: int, blocks: int, others: int, block_length: int, count: bool) -> Launch:
    g = generator(seed)
    requests = blocks + others
    most = requests + 1
    queries = ints(g, 1, 6, requests)
    start = starts(queries)
    tokens = int(start[-1])
    arguments = {
        "starts_ptr": torch.full((blocks,), -7),
        "ids_ptr": torch.full((blocks, block_length), -7),
        "masked_ptr": torch.rand(blocks, block_length - 1, generator=g) < 0.5,
        "count_ptr": torch.full((most,), -7),
        "rows_ptr": slots(g, blocks, requests, torch.int64),
        "lengths_ptr": ints(g, 2, block_length, blocks, dtype=torch.int64),
        "positions_ptr": ints(g, 0, CONTEXT - 2, tokens, dtype=torch.int64),
        "query_start_loc_ptr": start,
        "idx_mapping_ptr": slots(g, requests, most),
        "num_sampled_ptr": ints(g, 0, 2, requests),
        "num_rejected_ptr": (torch.rand(requests, generator=g) * queries).int(),
        "last_sampled_ptr": ints(g, 100, 199, most, 1, dtype=torch.int64),
        "next_prompt_ptr": ints(g, 200, 299, 1, most),
        "mask_token_id": MASK,
        "block_length": block_length,
        "max_model_len": CONTEXT,
        "COUNT": count,
        "WIDTH": lane(block_length),
    }
    return Launch(KERNELS, "lay_blocks_kernel", (blocks,), arguments)


def fill_pass(seed: int, blocks: int, padding: int, spare: int, block_length: int, write: bool) -> Launch:
    g = generator(seed)
    requests, most, width, kv_block = blocks + padding, blocks + 2, 9, 4
    lengths = ints(g, 2, block_length, blocks, dtype=torch.int64)
    first = starts(lengths)
    total = int(first[-1])
    tokens = total + spare
    places = [slots(g, blocks, most, torch.int64) for _ in range(3)]
    arguments = {
        "input_ids_ptr": torch.full((tokens + 2,), -7, dtype=torch.int32),
        "positions_ptr": torch.full((tokens + 2,), -7),
        "slots_ptr": torch.full((1, tokens + 2), -7),
        "query_start_loc_ptr": torch.full((requests + 3,), -7, dtype=torch.int32),
        "seq_lens_ptr": torch.full((requests + 2,), -7, dtype=torch.int32),
        "table_out_ptr": torch.full((requests + 2, width), -7, dtype=torch.int32),
        "plan_ptr": torch.stack([*places, lengths, first[:-1].long()]),
        "ids_ptr": ints(g, 0, 99, most, block_length, dtype=torch.int64),
        "starts_ptr": ints(g, 0, CONTEXT - 1, most, dtype=torch.int64),
        "table_ptr": ints(g, 0, 99, most, width),
        "owned_ptr": ints(g, 0, width, most),
        "blocks": blocks,
        "total": total,
        "requests": requests,
        "tokens": tokens,
        "block_length": block_length,
        "table_width": width,
        "kv_block_size": kv_block,
        "max_model_len": CONTEXT,
        "WRITE": write,
        "NO_SLOT": -1,
        "WIDTH": lane(block_length),
    }
    return Launch(KERNELS, "fill_pass_kernel", (requests + 1,), arguments)


def grow_trees(seed: int, trees: int, most: int, block_length: int, even: bool) -> Launch:
    """Also with equal probabilities (`even`), and with fewer candidates than nodes."""
    g = generator(seed)
    slot_count, blocks, width = trees + 2, trees + 1, most + 1
    slot, nodes = slots(g, trees, slot_count, torch.int64), ints(g, 1, most, trees, dtype=torch.int64)
    block, lengths = slots(g, trees, blocks, torch.int64), ints(g, 2, block_length, trees, dtype=torch.int64)
    anchors = ints(g, 1, CONTEXT - 1, blocks, dtype=torch.int64)
    count = int((lengths - 1).sum())
    log_probs = (ints(g, 0, 3, count, 5).float() if even else torch.randn(count, 5, generator=g)).log_softmax(-1)
    log_probs, candidates = log_probs.topk(4)
    if seed % 3 == 0:
        log_probs[:, 3] = float("-inf")
    arguments = {
        "parents_ptr": torch.full((slot_count, width), -7, dtype=torch.int32),
        "tokens_ptr": torch.full((slot_count, most), -7),
        "plan_ptr": torch.stack([slot, nodes, block, lengths, starts(lengths - 1)[:-1].long()]),
        "starts_ptr": anchors,
        "candidates_ptr": candidates,
        "log_probs_ptr": log_probs,
        "trees": trees,
        "width": width,
        "mask_token_id": MASK,
        "max_model_len": CONTEXT,
        "TOP": 4,
        "WIDTH": lane(width),
    }
    return Launch(TREES, "grow_trees_kernel", (trees,), arguments)


def mask_rows(seed: int, requests: int, most: int) -> Launch:
    """Of trees, of blocks with groups of masks, which may be cut anywhere, and of causal requests."""
    g = generator(seed)
    slot_count, width = requests + 2, most + 1
    rows = ints(g, 1, width, requests, dtype=torch.int64)
    first, slot = starts(rows)[:-1].long(), slots(g, requests, slot_count, torch.int64)
    kind = ints(g, 0, 2, requests, dtype=torch.int64)
    drafts, size = (ints(g, least, 6, requests, dtype=torch.int64) for least in (0, 1))
    groups = int(((rows - 1 - drafts).clamp(min=0) / size).ceil().max()) + 1
    ends = ints(g, 0, 6, slot_count, groups) % (drafts.min() + 1).int()
    total = int(rows.sum())
    arguments = {
        "bits_ptr": torch.full((total + 2, words(width)), 7, dtype=torch.int32),
        "positions_ptr": torch.arange(total) + 100,
        "plan_ptr": torch.stack([first, rows, slot, kind, drafts, size]),
        "parents_ptr": random_parents(g, slot_count, width),
        "ends_ptr": ends,
        "requests": requests,
        "width": width,
        "groups": groups,
        "words": words(width),
        "last_position": LAST,
        "WORDS": lane(words(width)),
        "TREE": TREE,
        "GROUPS": GROUPS,
    }
    return Launch(TREES, "mask_rows_kernel", (requests, int(rows.max())), arguments)


def walk_trees(seed: int, trees: int, others: int, most: int) -> Launch:
    g = generator(seed)
    requests, slot_count, width = trees + others, trees + 2, most + 1
    start = starts(ints(g, 1, width, requests))
    total = int(start[-1])
    request, slot = slots(g, trees, requests, torch.int64), slots(g, trees, slot_count, torch.int64)
    parents, tokens, sampled = random_parents(g, slot_count, width), ints(g, 0, 1, total), ints(g, 0, 3, total)
    is_tree = ints(g, 0, 1, trees, dtype=torch.int64)
    for index in is_tree.nonzero().flatten().tolist():  # siblings hold different tokens
        seen: dict[int, int] = {}
        for row in range(1, int(start[request[index] + 1] - start[request[index]])):
            parent = int(parents[slot[index], row])
            tokens[start[request[index]] + row] = seen.setdefault(parent, 0)
            seen[parent] += 1
    arguments = {
        "out_ptr": torch.full((requests, width), -7),
        "out_stride": width,
        "count_ptr": torch.full((requests,), -7, dtype=torch.int32),
        "path_ptr": torch.full((slot_count, width), -7, dtype=torch.int32),
        "order_ptr": torch.arange(total),
        "plan_ptr": torch.stack([request, slot, is_tree]),
        "parents_ptr": parents,
        "cu_num_logits_ptr": start,
        "sampled_ptr": sampled.long(),
        "tokens_ptr": tokens,
        "trees": trees,
        "width": width,
        "block_length": width,
        "WIDTH": lane(width),
    }
    return Launch(TREES, "walk_trees_kernel", (trees,), arguments)
