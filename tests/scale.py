"""Scales the number of samples and cases in tests: small in CI, larger by hand.

NLD_TEST_SCALE=10 pytest tests/spec_worker/test_sampling.py
"""

import os

SCALE = float(os.environ.get("NLD_TEST_SCALE", "1"))


def scaled(count: int) -> int:
    """`count` times NLD_TEST_SCALE, at least 1."""
    return max(1, round(count * SCALE))
