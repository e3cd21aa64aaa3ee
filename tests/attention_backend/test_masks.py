"""Masks: properties at every size, and agreement with the masks of the reference loops."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_backend.masks import Block, BlockCausal, Causal, Mask, QuadraticGroups, Tree, kernel_causal
from tests.attention_backend.steps import groups, trees
from tests.attention_backend.steps import masks as everything
from vllm_nld.reference import masks as reference


@settings(max_examples=60, deadline=None)
@given(everything, st.integers(0, 9))
def test_every_token_sees_the_cache_and_itself(mask: Mask, cached: int) -> None:
    dense = mask.dense(cached)
    assert dense.shape == (mask.length, cached + mask.length)
    assert dense[:, :cached].all()
    assert dense[:, cached:].diagonal().all()


@settings(max_examples=60, deadline=None)
@given(everything)
def test_sees_is_transitive(mask: Mask) -> None:
    """A token attends only to tokens computed from tokens that it may attend to, so no information leaks."""
    dense = mask.dense().int()
    reachable = (dense @ dense) > 0
    assert not (reachable & (dense == 0)).any()


@settings(max_examples=60, deadline=None)
@given(everything)
def test_no_token_sees_a_later_position_outside_its_group(mask: Mask) -> None:
    """Only tokens that see each other may attend to later positions."""
    dense, position = mask.dense(), mask.positions()
    ahead = dense & (position[None, :] > position[:, None])
    assert (ahead <= dense.T).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 9))
def test_causal_and_block_equal_the_reference(tokens: int, cached: int) -> None:
    assert torch.equal(Causal(tokens).dense(cached), reference.causal(tokens, cached))
    assert torch.equal(Block(tokens).dense(cached), reference.block(tokens, cached))


@settings(max_examples=60, deadline=None)
@given(groups, st.integers(0, 9))
def test_quadratic_groups_equal_the_reference(mask: QuadraticGroups, cached: int) -> None:
    exact = reference.quadratic_groups(mask.block_length, mask.ends, mask.masks, cached)
    assert torch.equal(mask.dense(cached), exact)


def test_the_full_form_has_a_group_for_each_number_of_accepted_drafts() -> None:
    assert QuadraticGroups.full(3) == QuadraticGroups(3, (0, 1, 2), 3)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30))
def test_block_causal_lies_between_causal_and_block(tokens: int, block_length: int) -> None:
    dense = BlockCausal(tokens, block_length).dense()
    assert (Causal(tokens).dense() <= dense).all()
    if block_length == 1:
        assert torch.equal(dense, Causal(tokens).dense())
    if block_length >= tokens:
        assert torch.equal(dense, Block(tokens).dense())


@pytest.mark.parametrize(
    "mask", [Causal(3), Block(3), BlockCausal(5, 2), QuadraticGroups.full(2), Tree((-1, 0, 0))], ids=str
)
def test_labels_are_unique(mask: Mask) -> None:
    assert len({mask.label(token) for token in range(mask.length)}) == mask.length


def test_quadratic_positions_overlap() -> None:
    assert QuadraticGroups(2, (1, 0), 3).positions().tolist() == [0, 1, 2, 3, 4, 1, 2, 3]


@settings(max_examples=60, deadline=None)
@given(trees)
def test_a_path_of_a_tree_is_a_causal_sequence(tree: Tree) -> None:
    """What a node sees is one token per depth, from the root to itself."""
    dense, position = tree.dense(), tree.positions()
    for token in range(tree.length):
        assert position[dense[token]].tolist() == list(range(int(position[token]) + 1))


def test_a_chain_is_a_tree_without_branches() -> None:
    assert torch.equal(Tree((-1, 0, 1, 2)).dense(3), Causal(4).dense(3))


@pytest.mark.parametrize(
    ("parents", "message"),
    [((), "root"), ((0,), "root"), ((-1, -1), "token 1.*not -1"), ((-1, 0, 2), "token 2.*not 2")],
)
def test_malformed_trees_are_rejected(parents: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tree(parents)


def test_kernel_causal() -> None:
    assert kernel_causal(Causal(3)) is True
    assert kernel_causal(Block(3)) is False
    for mask in (BlockCausal(4, 2), QuadraticGroups.full(2), Tree((-1, 0))):
        with pytest.raises(ValueError, match=f"{type(mask).__name__}.*no kernel of vLLM"):
            kernel_causal(mask)


@pytest.mark.parametrize("make", [lambda: Causal(0), lambda: Block(-1), lambda: BlockCausal(3, 0)])
def test_empty_masks_are_rejected(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="must be at least 1"):
        make()


@pytest.mark.parametrize("end", [-1, 3])
def test_a_group_ends_in_the_block(end: int) -> None:
    with pytest.raises(ValueError, match=f"one of the block's 3 tokens, not at {end}"):
        QuadraticGroups(3, (0, end), 3)


def test_masks_are_drawn(tmp_path: Path) -> None:
    from vllm_nld.tools.cli import main

    assert main(["masks", "--out", str(tmp_path / "masks.png")]) == 0
    assert (tmp_path / "masks.png").read_bytes().startswith(b"\x89PNG")
