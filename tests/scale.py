"""Scales the number of samples and cases in tests: small in CI, larger by hand, smaller on another vLLM release.

NLD_TEST_SCALE=10 pytest tests/spec_worker/test_sampling.py
"""

import os
from collections.abc import Sequence
from typing import TypeVar

Case = TypeVar("Case")

SCALE = float(os.environ.get("NLD_TEST_SCALE", "1"))


def scaled(count: int) -> int:
    """`count` times NLD_TEST_SCALE, at least 1."""
    return max(1, round(count * SCALE))


def spread(cases: Sequence[Case]) -> list[Case]:
    """All cases; if NLD_TEST_SCALE is below 1, that share of them, from the first on, evenly spread."""
    return [*cases][:: max(1, round(1 / SCALE))]
