"""Draft trees: which nodes they have, and that what is accepted follows the verifier's distribution."""

import math
from collections import Counter
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.chi_square import fit
from vllm_nld.reference.generation import Output
from vllm_nld.reference.sampling import softmax
from vllm_nld.reference.tree import Tree, grow, walk

PROBABILITIES = st.lists(st.integers(1, 9), min_size=4, max_size=4, unique=True)


def ranked(weights: list[list[int]]) -> tuple[list[list[int]], list[list[float]]]:
    """Candidates 10 * position + rank, and their log probabilities, descending."""
    log_probs = [sorted((math.log(weight / sum(row)) for weight in row), reverse=True) for row in weights]
    return [[10 * place + rank for rank in range(4)] for place in range(len(weights))], log_probs


@given(st.lists(PROBABILITIES, min_size=1, max_size=5), st.integers(1, 40))
def test_the_likeliest_nodes_are_kept(weights: list[list[int]], nodes: int) -> None:
    candidates, log_probs = ranked(weights)
    tree = grow(99, candidates, log_probs, nodes)
    totals = {
        ranks: sum(log_probs[place][rank] for place, rank in enumerate(ranks))
        for depth in range(1, len(weights) + 1)
        for ranks in product(range(4), repeat=depth)
    }
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(tree.tokens[1:], tree.parents[1:], strict=True):
        paths.append((*paths[parent], token % 10))
    assert len(set(paths)) == len(paths) == 1 + min(nodes, len(totals))
    found = [totals[path] for path in paths[1:]]
    assert found == pytest.approx(sorted(totals.values(), reverse=True)[: len(found)])
    assert found == pytest.approx(sorted(found, reverse=True)), "the likeliest come first, so a tree can be cut"
    assert tree.depths() == [len(path) for path in paths]


def test_equal_nodes_are_ordered_by_their_parents() -> None:
    tree = grow(0, [[1, 2], [3, 4]], [[math.log(0.5)] * 2, [0.0, -math.inf]], 9)
    assert tree.tokens == (0, 1, 2, 3, 3)
    assert tree.parents == (-1, 0, 0, 1, 2)


def test_a_row_follows_its_parent() -> None:
    with pytest.raises(ValueError, match="before it as its parent"):
        Tree((5, 6, 7), (-1, 2, 0))


def test_samples_follow_the_verifier() -> None:
    """The first two tokens of a walk through a tree that holds some of them, and its accepted length."""
    generator = torch.Generator().manual_seed(0)
    tree = Tree((0, 1, 2, 1), (-1, 0, 0, 1))
    logits = torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, 0.3], [0.2, 0.4, 2.0], [0.0, 0.0, 0.0]])
    probs = softmax(logits, 0.7)
    counts: Counter[tuple[int, ...]] = Counter()
    for _ in range(4000):
        output = Output(limit=99)
        path = walk(tree, probs, output, generator)
        assert output.rounds == [len(path)] == [len(output.tokens)]
        counts[(*output.tokens, 0)[:2]] += 1  # no node holds token 0: it comes alone
    after = torch.stack([torch.tensor([1.0, 0.0, 0.0]).double(), probs[1], probs[2]])
    assert fit(counts, probs[0][:, None] * after).follows
