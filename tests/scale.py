"""Scales the number of samples and cases in tests: larger by hand, smaller in CI and on another vLLM release.

NLD_TEST_SCALE=10 pytest tests/spec_worker/test_sampling.py
NLD_TEST_SCALE=0.33 NLD_TEST_PART=1 pytest tests/spec_worker/test_lossless.py        # the second third
"""

import os
from collections.abc import Sequence
from typing import TypeVar

Case = TypeVar("Case")

SCALE = float(os.environ.get("NLD_TEST_SCALE", "1"))
PART = int(os.environ.get("NLD_TEST_PART", "0"))


def scaled(count: int) -> int:
    """`count` times NLD_TEST_SCALE, at least 1."""
    return max(1, round(count * SCALE))


def spread(cases: Sequence[Case]) -> list[Case]:
    """All cases; if NLD_TEST_SCALE is below 1, that share of them, evenly spread: which ones, NLD_TEST_PART says."""
    step = max(1, min(len(cases), round(1 / SCALE)))
    return [*cases][PART % step :: step]
