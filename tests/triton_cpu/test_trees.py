"""The kernels of draft trees: twins write the same memory as the kernels in the interpreter, and both are right."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from attention_backend.masks import Causal, QuadraticGroups, Tree
from attention_backend.rows import pack, words
from spec_worker.tree_kernels import GROUPS, TREE
from tests.triton_cpu.harness import CASES, SEEDS, assert_equal, generator, ints, slots, starts
from vllm_nld.reference import tree as reference

MODULE = "spec_worker.tree_kernels"
MASK, CONTEXT = 99, 40
LAST = 108  # the last position of the context that rows are masked in


def lane(width: int) -> int:
    return 1 << (width - 1).bit_length()


def random_parents(g: torch.Generator, most: int, width: int) -> torch.Tensor:
    """[most, width] int32 trees, whose last rows may have no node."""
    parents = torch.full((most, width), -1, dtype=torch.int32)
    for row in range(1, width):
        parents[:, row] = (torch.rand(most, generator=g) * row).int()
    empty = ints(g, 1, width, most)
    return parents.masked_fill(torch.arange(width) >= empty[:, None], -1)


@CASES
@given(SEEDS, st.integers(1, 3), st.sampled_from([1, 2, 9, 40]), st.sampled_from([2, 3, 8]), st.booleans())
def test_grow(seed: int, trees: int, most: int, block_length: int, even: bool) -> None:
    """Also with equal probabilities, and with fewer candidates than nodes."""
    g = generator(seed)
    slot_count, blocks, width = trees + 2, trees + 1, most + 1
    slot, nodes = slots(g, trees, slot_count, torch.int64), ints(g, 1, most, trees, dtype=torch.int64)
    block, lengths = slots(g, trees, blocks, torch.int64), ints(g, 2, block_length, trees, dtype=torch.int64)
    first = starts(lengths - 1)[:-1].long()
    anchors = ints(g, 1, CONTEXT - 1, blocks, dtype=torch.int64)
    count = int((lengths - 1).sum())
    log_probs = (ints(g, 0, 3, count, 5).float() if even else torch.randn(count, 5, generator=g)).log_softmax(-1)
    log_probs, candidates = log_probs.topk(4)
    if seed % 3 == 0:
        log_probs[:, 3] = float("-inf")
    found = assert_equal(
        MODULE,
        "grow_trees_kernel",
        (trees,),
        parents_ptr=torch.full((slot_count, width), -7, dtype=torch.int32),
        tokens_ptr=torch.full((slot_count, most), -7),
        plan_ptr=torch.stack([slot, nodes, block, lengths, first]),
        starts_ptr=anchors,
        candidates_ptr=candidates,
        log_probs_ptr=log_probs,
        trees=trees,
        width=width,
        mask_token_id=MASK,
        max_model_len=CONTEXT,
        TOP=4,
        WIDTH=lane(width),
    )
    for index in range(trees):
        deepest = min(int(lengths[index]), CONTEXT - int(anchors[block[index]])) - 1
        some, n = slice(int(first[index]), int(first[index]) + deepest), int(nodes[index])
        exact = reference.grow(5, candidates[some].tolist(), log_probs[some].tolist(), n)
        missing = n + 1 - len(exact.parents)
        row = int(slot[index])
        assert found["parents_ptr"][row, : n + 1].tolist() == [*exact.parents, *[-1] * missing]
        assert found["tokens_ptr"][row, :n].tolist() == [*exact.tokens[1:], *[MASK] * missing]


@CASES
@given(SEEDS, st.integers(1, 3), st.sampled_from([1, 9, 31, 32, 40, 70]))
def test_mask_rows(seed: int, requests: int, most: int) -> None:
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
    positions = torch.arange(total) + 100
    parents = random_parents(g, slot_count, width)
    found = assert_equal(
        MODULE,
        "mask_rows_kernel",
        (requests, int(rows.max())),
        bits_ptr=torch.full((total + 2, words(width)), 7, dtype=torch.int32),
        positions_ptr=positions,
        plan_ptr=torch.stack([first, rows, slot, kind, drafts, size]),
        parents_ptr=parents,
        ends_ptr=ends,
        requests=requests,
        width=width,
        groups=groups,
        words=words(width),
        last_position=LAST,
        WORDS=lane(words(width)),
        TREE=TREE,
        GROUPS=GROUPS,
    )
    for index in range(requests):
        some, count = slice(int(first[index]), int(first[index] + rows[index])), int(rows[index])
        expected = positions[some].clone()
        dense = torch.eye(count, dtype=torch.bool)
        if kind[index] == TREE:
            own = parents[slot[index], :count].tolist()
            nodes = next((row for row in range(1, count) if own[row] < 0), count)
            tree = Tree(tuple(own[:nodes]))
            dense[:nodes, :nodes] = tree.dense()
            expected[:] = expected[0]
            expected[:nodes] += tree.positions()
        elif kind[index] == GROUPS:
            some_ends = tuple(ends[slot[index]].tolist())
            whole = QuadraticGroups(int(drafts[index]) + 1, some_ends, int(size[index]))
            dense = whole.dense()[:count]
            dense = torch.nn.functional.pad(dense, (0, words(width) * 32))[:, : words(width) * 32]
            expected = (positions[some][0] + whole.positions()[:count]).where(
                torch.arange(count) > int(drafts[index]), expected
            )
            expected = expected.where(torch.arange(count) <= int(drafts[index]), expected.clamp(max=LAST))
        else:
            dense = Causal(count).dense()
        assert found["bits_ptr"][some].equal(pack(dense, words(width)))
        assert found["positions_ptr"][some].equal(expected)


@CASES
@given(SEEDS, st.integers(1, 3), st.integers(0, 2), st.sampled_from([2, 5, 24]))
def test_walk(seed: int, trees: int, others: int, most: int) -> None:
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
    found = assert_equal(
        MODULE,
        "walk_trees_kernel",
        (trees,),
        out_ptr=torch.full((requests, width), -7),
        out_stride=width,
        count_ptr=torch.full((requests,), -7, dtype=torch.int32),
        path_ptr=torch.full((slot_count, width), -7, dtype=torch.int32),
        order_ptr=torch.arange(total),
        plan_ptr=torch.stack([request, slot, is_tree]),
        parents_ptr=parents,
        cu_num_logits_ptr=start,
        sampled_ptr=sampled.long(),
        tokens_ptr=tokens,
        trees=trees,
        width=width,
        block_length=width,
        WIDTH=lane(width),
    )
    for index in range(trees):
        at, end = int(start[request[index]]), int(start[request[index] + 1])
        own = parents[slot[index], : end - at].tolist() if is_tree[index] else list(range(-1, end - at - 1))
        nodes = next((row for row in range(1, end - at) if own[row] < 0), end - at)
        tree = reference.Tree(tuple(tokens[at : at + nodes].tolist()), tuple(own[:nodes]))
        path: list[int] = [0]
        while (child := tree.child(path[-1], int(sampled[at + path[-1]]))) is not None:
            path.append(child)
        assert found["count_ptr"][request[index]] == len(path)
        assert found["path_ptr"][slot[index], : len(path)].tolist() == path
        assert found["out_ptr"][request[index], : len(path)].tolist() == [int(sampled[at + row]) for row in path]
        assert found["order_ptr"][at : at + len(path)].tolist() == [at + row for row in path]
