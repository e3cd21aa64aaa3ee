"""Groups of masks: which ones there are, which rows are verified, and who takes what from them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spec_worker.mask_groups import MaskGroups, likeliest_ends, mask_rows, only_verified
from vllm_nld.reference import quadratic as reference

certainties = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(st.lists(certainties, min_size=1, max_size=4), st.integers(1, 9))
def test_the_likeliest_ends_are_the_references(rows: list[list[float]], count: int) -> None:
    """A shorter block's missing drafts have certainty 0, and no end lies beyond them if there are enough others."""
    longest = max(map(len, rows))
    count = min(count, min(map(len, rows)) + 1)
    padded = torch.tensor([row + [0.0] * (longest - len(row)) for row in rows], dtype=torch.float64)
    found = likeliest_ends(padded, count).tolist()
    for ends, row in zip(found, rows, strict=True):
        exact = reference.likeliest_ends(row, count)
        chances = torch.tensor(row + [0.0], dtype=torch.float64)
        reached = torch.cat([torch.ones(1, dtype=torch.float64), chances[:-1].cumprod(0)])
        likely = reached * (1 - chances)
        torch.testing.assert_close(likely[ends], likely[exact], atol=1e-15, rtol=1e-9)
        assert len(set(ends)) == count


def batch(drafts: list[int], prompts: list[int]) -> Any:
    """What we read of an InputBatch, with slots in reverse order; each request has so many prompt tokens before."""
    logits, rows = np.array(drafts) + 1, np.array(drafts) + 1 + np.array(prompts)
    starts = np.concatenate([[0], rows.cumsum()]).astype(np.int32)
    cu = np.concatenate([[0], logits.cumsum()]).astype(np.int32)
    slots = np.arange(len(drafts))[::-1].copy()
    place = [torch.arange(count) for count in logits]
    return SimpleNamespace(
        num_reqs=len(drafts),
        idx_mapping_np=slots,
        num_draft_tokens_per_req=np.array(drafts),
        num_scheduled_tokens=rows,
        query_start_loc_np=starts,
        cu_num_logits_np=cu,
        cu_num_logits=torch.from_numpy(cu),
        logits_indices=torch.cat(
            [int(end) - count + p for end, count, p in zip(starts[1:], logits, place, strict=True)]
        ),
        expanded_idx_mapping=torch.from_numpy(slots).repeat_interleave(torch.from_numpy(logits)),
        expanded_local_pos=torch.cat(place),
    )


@pytest.fixture
def groups() -> MaskGroups:
    """Slot 0: a chain of 3 and two groups of 4. Slot 1: nothing. Slot 2: one group of 2 right after its anchor."""
    found = MaskGroups(4, 3, torch.device("cpu"))
    found.lay(np.array([0, 2]), np.array([3, 0]), np.array([2, 1]), np.array([4, 2]), torch.tensor([[3, 1], [0, 0]]))
    return found


def test_masks_are_not_verified(groups: MaskGroups) -> None:
    given = batch([2, 5, 11], prompts=[3, 0, 0])  # slots 2, 1, 0
    drafts = groups.begin(given)
    assert drafts is not None and drafts.tolist() == [0, 5, 3]
    assert groups.stands[[0, 1, 2]].tolist() == [2, 0, 1]
    rows = mask_rows(given, drafts)
    masked = [[False] * 4 + [True] * 2, [False] * 6, [False] * 4 + [True] * 8]
    assert rows.tolist() == [row for request in masked for row in request]
    only_verified(given, drafts)
    assert given.cu_num_logits_np.tolist() == given.cu_num_logits.tolist() == [0, 1, 7, 11]
    assert given.cu_num_logits_np.dtype == np.int32
    assert given.logits_indices.tolist() == [3, *range(6, 12), *range(12, 16)]
    assert given.expanded_idx_mapping.tolist() == [2] + [1] * 6 + [0] * 4
    assert given.expanded_local_pos.tolist() == [0, *range(6), *range(4)]


@pytest.mark.parametrize(("drafts", "stands"), [(11, 2), (10, 1), (7, 1), (6, 0), (4, 0)])
def test_a_group_that_is_cut_is_none(drafts: int, stands: int, groups: MaskGroups) -> None:
    found = groups.begin(batch([2, 5, drafts], prompts=[0, 0, 0]))
    assert found is not None and found.tolist() == [0, 5, 3], "and its masks are not verified either"
    assert groups.stands[0] == stands


@pytest.mark.parametrize("drafts", [[0, 5, 3], [0, 0, 1], [0, 7, 0]])
def test_a_step_without_masks_is_left_alone(drafts: list[int], groups: MaskGroups) -> None:
    groups.begin(batch([2, 5, 11], prompts=[0, 0, 0]))
    assert groups.begin(batch(drafts, prompts=[0, 0, 0])) is None
    assert not groups.stands.any()


def test_the_group_of_what_was_accepted_is_chosen(groups: MaskGroups) -> None:
    groups.begin(batch([2, 5, 11], prompts=[0, 0, 0]))
    for kept, group in ((4, 0), (2, 1)):
        chosen, fits = groups.chosen(np.array([0, 2]), torch.tensor([kept, 1], dtype=torch.int32))
        assert chosen.tolist() == [group, 0] and fits.tolist() == [True, True]
    _, fits = groups.chosen(np.array([0, 1, 2]), torch.tensor([1, 1, 2], dtype=torch.int32))
    assert fits.tolist() == [False, False, False]
    groups.begin(batch([2, 5, 10], prompts=[0, 0, 0]))
    _, fits = groups.chosen(np.array([0, 0]), torch.tensor([4, 2], dtype=torch.int32))
    assert fits.tolist() == [True, False], "the second group was cut"


def test_a_new_request_has_no_groups(groups: MaskGroups) -> None:
    groups.forget(0)
    groups.forget(2)
    assert groups.begin(batch([2, 5, 11], prompts=[0, 0, 0])) is None
