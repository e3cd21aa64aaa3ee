"""The kernels of draft trees: twins write the same memory as the kernels in the interpreter, and both are right."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from attention_backend.masks import Causal, QuadraticGroups, Tree
from attention_backend.rows import pack, words
from spec_worker.tree_kernels import GROUPS, TREE
from tests.triton_cpu import cases
from tests.triton_cpu.cases import CONTEXT, LAST, MASK
from tests.triton_cpu.harness import CASES, SEEDS
from vllm_nld.reference import tree as reference


@CASES
@given(SEEDS, st.integers(1, 3), st.sampled_from([1, 2, 9, 40]), st.sampled_from([2, 3, 8]), st.booleans())
def test_grow(seed: int, trees: int, most: int, block_length: int, even: bool) -> None:
    """Also with equal probabilities, and with fewer candidates than nodes."""
    found = cases.grow_trees(seed, trees, most, block_length, even).check()
    slot, nodes, block, lengths, first = found["plan_ptr"].tolist()
    for index in range(trees):
        deepest = min(lengths[index], CONTEXT - int(found["starts_ptr"][block[index]])) - 1
        some, n = slice(first[index], first[index] + deepest), nodes[index]
        ranked = (found[name][some].tolist() for name in ("candidates_ptr", "log_probs_ptr"))
        exact = reference.grow(5, *ranked, n)
        missing = n + 1 - len(exact.parents)
        row = slot[index]
        assert found["parents_ptr"][row, : n + 1].tolist() == [*exact.parents, *[-1] * missing]
        assert found["tokens_ptr"][row, :n].tolist() == [*exact.tokens[1:], *[MASK] * missing]


@CASES
@given(SEEDS, st.integers(1, 3), st.sampled_from([1, 9, 31, 32, 40, 70]))
def test_mask_rows(seed: int, requests: int, most: int) -> None:
    """Of trees, of blocks with groups of masks, which may be cut anywhere, and of causal requests."""
    launch = cases.mask_rows(seed, requests, most)
    found, width = launch.check(), most + 1
    before, parents, ends = launch.arguments["positions_ptr"], found["parents_ptr"], found["ends_ptr"]
    for first, count, slot, kind, drafts, size in found["plan_ptr"].T.tolist():
        some = slice(first, first + count)
        expected = before[some].clone()
        dense = torch.eye(count, dtype=torch.bool)
        if kind == TREE:
            own = parents[slot, :count].tolist()
            nodes = next((row for row in range(1, count) if own[row] < 0), count)
            tree = Tree(tuple(own[:nodes]))
            dense[:nodes, :nodes] = tree.dense()
            expected[:] = expected[0]
            expected[:nodes] += tree.positions()
        elif kind == GROUPS:
            whole = QuadraticGroups(drafts + 1, tuple(ends[slot].tolist()), size)
            dense = whole.dense()[:count]
            dense = torch.nn.functional.pad(dense, (0, words(width) * 32))[:, : words(width) * 32]
            masks = torch.arange(count) > drafts
            expected = torch.where(masks, (before[some][0] + whole.positions()[:count]).clamp(max=LAST), expected)
        else:
            dense = Causal(count).dense()
        assert found["bits_ptr"][some].equal(pack(dense, words(width)))
        assert found["positions_ptr"][some].equal(expected)


@CASES
@given(SEEDS, st.integers(1, 3), st.integers(0, 2), st.sampled_from([2, 5, 24]))
def test_walk(seed: int, trees: int, others: int, most: int) -> None:
    found = cases.walk_trees(seed, trees, others, most).check()
    start, sampled, tokens = (found[name].tolist() for name in ("cu_num_logits_ptr", "sampled_ptr", "tokens_ptr"))
    for request, slot, is_tree in found["plan_ptr"].T.tolist():
        at, end = start[request], start[request + 1]
        own = found["parents_ptr"][slot, : end - at].tolist() if is_tree else list(range(-1, end - at - 1))
        nodes = next((row for row in range(1, end - at) if own[row] < 0), end - at)
        tree = reference.Tree(tuple(tokens[at : at + nodes]), tuple(own[:nodes]))
        path: list[int] = [0]
        while (child := tree.child(path[-1], sampled[at + path[-1]])) is not None:
            path.append(child)
        assert found["count_ptr"][request] == len(path)
        assert found["path_ptr"][slot, : len(path)].tolist() == path
        assert found["out_ptr"][request, : len(path)].tolist() == [sampled[at + row] for row in path]
        assert found["order_ptr"][at : at + len(path)].tolist() == [at + row for row in path]
