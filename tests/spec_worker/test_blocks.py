"""Where blocks lie after a target's step, against plain Python; and the layout of a pass."""

import numpy as np
import pytest
import torch

from spec_worker.blocks import Layout
from spec_worker.kernels import lay_blocks_kernel

B, MASK, CONTEXT = 4, 100, 16
LENGTHS = [4, 3, 2]


def lay(rows: list[int], count: bool) -> dict[str, torch.Tensor]:
    """Blocks of a batch's requests: one accepted 2 of 4 rows, one is inside its prompt, one was asked for its last."""
    written = {
        "starts": torch.empty(len(rows), dtype=torch.int64),
        "ids": torch.empty(len(rows), B, dtype=torch.int64),
        "masked": torch.empty(len(rows), B - 1, dtype=torch.bool),
        "count": torch.full((3,), -7),
    }
    lay_blocks_kernel[(len(rows),)](
        *written.values(),
        torch.tensor(rows),
        torch.tensor(LENGTHS)[rows],
        torch.tensor([10, 11, 12, 13, 0, 1, 2, 14]),  # positions
        torch.tensor([0, 4, 7, 8], dtype=torch.int32),  # query_start_loc
        torch.tensor([2, 0, 1], dtype=torch.int32),  # idx_mapping
        torch.tensor([2, 0, 1], dtype=torch.int32),  # num_sampled
        torch.tensor([2, 0, 0], dtype=torch.int32),  # num_rejected
        torch.tensor([[70], [71], [72]]),  # last_sampled
        torch.tensor([[80, 81, 82]], dtype=torch.int32),  # next_prompt
        MASK,
        B,
        CONTEXT,
        COUNT=count,
        WIDTH=4,
    )
    return written


def test_a_block_follows_what_was_kept() -> None:
    blocks = lay([0, 1, 2], count=True)
    assert blocks["starts"].tolist() == [12, 3, 15]
    assert blocks["ids"].tolist() == [[anchor, MASK, MASK, MASK] for anchor in (72, 80, 71)]
    assert blocks["masked"].tolist() == [[True, True, True], [True, True, False], [False, False, False]]
    assert blocks["count"].tolist() == [2, 0, 3], "the last has no room before the context's end"


def test_requests_that_draft_nothing_are_left_out() -> None:
    blocks = lay([2, 0], count=False)
    assert blocks["starts"].tolist() == [15, 12]
    assert blocks["ids"][:, 0].tolist() == [71, 72]
    assert blocks["count"].tolist() == [-7, -7, -7]


def test_only_blocks_of_one_length_are_uniform() -> None:
    assert Layout(np.array([4, 4, 4]), B).uniform == 4
    assert Layout(np.array([4, 3]), B).uniform is None


def test_a_layout_checks_itself() -> None:
    with pytest.raises(ValueError, match="blocks must have 2 to 4 tokens"):
        Layout(np.array([4, 1]), B)
