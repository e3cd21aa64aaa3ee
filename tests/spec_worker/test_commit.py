"""The batched rule equals the reference's for each request."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spec_worker.commit import commit
from vllm_nld.reference import draft


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 1))
def test_commit_is_the_references(seed: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(5, 7, generator=generator)
    masked = torch.rand(5, 7, generator=generator) < 0.6
    decided = commit(confidence, masked, torch.full((5,), threshold, dtype=torch.float64))
    for row in range(5):
        if masked[row].any():
            assert torch.equal(decided[row], draft.commit(confidence[row].double(), masked[row], threshold))
        else:
            assert not decided[row].any()
