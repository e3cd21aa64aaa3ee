"""Row masks: bits stand for the dense relation, and the reference attends as each request's mask says."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from attention_backend.masks import Block, Causal, Mask, Tree
from attention_backend.reference import attend, attend_step
from attention_backend.rows import RowMask, attach, attached, pack, step_mask, unpack, words
from tests.attention_backend.steps import masks as everything


@settings(max_examples=60, deadline=None)
@given(everything)
def test_bits_stand_for_the_relation(mask: Mask) -> None:
    dense = mask.dense()
    for width in (words(mask.length), words(mask.length) + 2):
        bits = pack(dense, width)
        assert (bits.shape, bits.dtype) == ((mask.length, width), torch.int32)
        assert torch.equal(unpack(bits, mask.length), dense)


def test_bit_j_is_column_j() -> None:
    dense = torch.zeros(1, 64, dtype=torch.bool)
    dense[0, [0, 31, 33]] = True
    assert pack(dense).tolist() == [[1 - 2**31, 2]]


def test_requests_without_a_mask_are_causal_in_the_reference() -> None:
    """The bits of their rows are not read."""
    lengths, prefixes, tree = [3, 5, 4], [7, 0, 2], Tree((-1, 0, 0, 1, 2))
    mask = step_mask([None, tree, Block(4)], lengths)
    assert mask is not None and mask.requests.tolist() == [1, 2]
    mask.bits[:3] = -1
    query = torch.randn(12, 4, 8)
    keys, values = ([torch.randn(p + t, 2, 8) for p, t in zip(prefixes, lengths, strict=True)] for _ in range(2))
    output = attend_step(query, keys, values, lengths, mask, 0.3)
    first = 0
    for request, own in enumerate([Causal(3), tree, Block(4)]):
        rows = slice(first, first + own.length)
        expected = attend(query[rows], keys[request], values[request], own.dense(prefixes[request]), 0.3)
        torch.testing.assert_close(output[rows], expected)
        first += own.length


def test_a_mask_reaches_every_layer() -> None:
    metadata = {f"layer.{index}": SimpleNamespace() for index in range(3)}
    attach(metadata, None)
    assert all(attached(layer) is None for layer in metadata.values())
    mask = step_mask([Block(2)], [2])
    attach(metadata, mask)
    assert all(attached(layer) is mask for layer in metadata.values())


def test_a_step_without_masks_has_none() -> None:
    assert step_mask([None, None], [3, 1]) is None


def test_a_mask_of_another_length_is_rejected() -> None:
    with pytest.raises(ValueError, match="request 1 has 3 rows.*has 2"):
        step_mask([None, Block(2)], [1, 3])


BITS = torch.zeros(2, 1, dtype=torch.int32)


@pytest.mark.parametrize(
    ("bits", "requests", "message"),
    [
        (BITS.long(), [0], "int32"),
        (BITS[0], [0], "int32"),
        (BITS, [], "ascending"),
        (BITS, [1, 1], "ascending"),
    ],
)
def test_malformed_row_masks_are_rejected(bits: torch.Tensor, requests: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RowMask(bits, np.array(requests))
