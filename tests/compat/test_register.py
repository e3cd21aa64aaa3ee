"""The register as the plugin uses it."""

import re
import sys
from pathlib import Path

import pytest

from tests.compat.conftest import without
from vllm_nld.compat import register
from vllm_nld.compat.patch import Patch


@pytest.mark.parametrize("patch", register.PATCHES, ids=lambda patch: patch.name)
def test_every_patch_is_taken_away_in_a_test(patch: Patch) -> None:
    area = patch.apply.__module__.rpartition(".")[2]
    tests = "".join(file.read_text() for file in Path(__file__).parent.glob("*.py"))
    assert re.search(rf"without\([^)]*\b{area}\.{patch.name}\b", tests)


def test_names_are_unique() -> None:
    assert len({patch.name for patch in register.PATCHES}) == len(register.PATCHES)


def test_applying_again_changes_nothing() -> None:
    register.apply()
    before = [(one.owner, one.name) for one in register.PATCHER.replaced], list(sys.meta_path)
    register.apply()
    assert ([(one.owner, one.name) for one in register.PATCHER.replaced], list(sys.meta_path)) == before


def test_undo_leaves_vllm_as_it_was() -> None:
    """Else the tests that take patches away would show nothing."""
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.metrics.stats import SchedulerStats

    assert "nld" in SchedulerStats.__dataclass_fields__
    with without(*register.PATCHES):
        assert EngineCore.post_step.__module__ == "vllm.v1.engine.core"
        assert "nld" not in SchedulerStats.__dataclass_fields__ and not hasattr(SchedulerStats, "nld")
        assert SchedulerStats(num_running_reqs=3) == SchedulerStats(num_running_reqs=3)
    assert EngineCore.post_step.__module__ == "vllm_nld.compat.speculation"
    assert "nld" in SchedulerStats.__dataclass_fields__
