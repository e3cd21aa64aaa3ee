"""`bench groups`: decoding with groups at a tree's ends is AR's, and with a chain it is quadratic mode's."""

from typing import Any

import pytest
import torch

from bench.ends import Counts, Shape, decode, drafted_tree, likeliest, mask_of
from bench.groups import per_forward, reached, rows_per_round, served
from tests.spec_worker.conftest import VOCAB, write_agreeable_checkpoint
from vllm_nld.reference import ReferenceModel, generate, masks
from vllm_nld.reference.generation import Output
from vllm_nld.reference.tree import Tree

TOKENS, BLOCK = 24, 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    return ReferenceModel.from_pretrained(write_agreeable_checkpoint(tmp_path_factory.mktemp("agreeable")))


@pytest.mark.parametrize("nodes", [0, 5, 9])
@pytest.mark.parametrize("groups", [0, 2, BLOCK])
def test_answers_are_those_of_ar(nodes: int, groups: int, model: ReferenceModel) -> None:
    for seed in range(3):
        prompt = torch.randint(0, VOCAB, (9,), generator=torch.Generator().manual_seed(seed)).tolist()
        output, counts, shape = Output(TOKENS), Counts(), Shape(BLOCK, nodes, groups)
        decode(model, prompt, shape, output, counts)
        exact = generate(model, prompt, mode="ar", max_new_tokens=TOKENS, ignore_eos=True)
        assert output.tokens == exact.tokens
        how: dict[str, Any] = {"mode": "quadratic", "groups": 0} if groups else {"mode": "linear", "tree_nodes": nodes}
        if not (groups and (nodes or groups < BLOCK)):  # served as well
            same = generate(model, prompt, block_length=BLOCK, max_new_tokens=TOKENS, ignore_eos=True, **how)
            assert counts.lengths == list(same.rounds)
            assert 1 + counts.rounds + counts.passes == same.nfe
        assert counts.rounds - 1 == counts.hits + counts.passes - (not groups), "each round but the last is followed"


def test_the_chances_of_a_trees_ends() -> None:
    """Of two positions; the mask token, 3, is no candidate."""
    logits = torch.tensor([[0.65, 0.25, 0.1, 9.0], [0.5, 0.4, 0.1, 9.0]], dtype=torch.float64).log()
    tree, left = drafted_tree(7, logits, Shape(3, 4, 1), mask_id=3)
    assert tree == Tree((7, 0, 0, 1, 1), (-1, 0, 1, 1, 0))
    assert left == pytest.approx([0.1, 0.065, 0.325, 0.26, 0.25])
    assert likeliest(left, 3) == [2, 3, 4]
    chain, left = drafted_tree(7, logits, Shape(3, 0, 1), mask_id=3)
    assert chain == Tree((7, 0, 0), (-1, 0, 1)) and left == pytest.approx([0.35, 0.325, 0.325])


def test_the_mask_of_a_chain_is_quadratic_modes() -> None:
    chain = Tree((7, 1, 2), (-1, 0, 1))
    assert mask_of(chain, [2, 0], 4, cached=2).equal(masks.quadratic_groups(3, [2, 0], 4, cached=2))


def row(groups: int, rounds: int, passes: int) -> dict[str, Any]:
    return {
        "block_length": 4,
        "groups": groups,
        "answers": 2,
        "tokens": 60,
        "rounds": rounds,
        "accepted": 40,
        "passes": passes,
    }


def test_shares_of_the_full_form() -> None:
    few, full = row(1, 18, 9), row(4, 18, 0)
    assert per_forward(few) == pytest.approx(60 / 29) and rows_per_round(few, 8) == pytest.approx(8 + 4 * 9 / 18)
    lines = served([few, full]).splitlines()[2:]
    assert lines == [
        "| 4 | 1 | 2.07 (69%) | 1.94 | 10 (50%) | 50.0% | 3.22 |",
        "| 4 | all | 3.00 (100%) | 2.73 | 20 (100%) | 100.0% | 3.22 |",
    ]
    assert reached([few, full]).endswith("none.")
