"""The private names of vLLM that we rely on: all exist in the tested release, and changes in the newest are known."""

import importlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.wheels import fetch, version
from vllm_nld.compat import register
from vllm_nld.contract import Finding, Sources, examine, seams
from vllm_nld.tools.doctor.contract import check_contract

BROKEN = {  # release: seams that do not hold there, as reviewed
    "0.33.0": {"vllm.v1.core.sched.scheduler.Scheduler._get_local_prefix_cache_hit"},
}
SPECULATOR = "vllm.v1.worker.gpu.spec_decode.speculator.DraftModelSpeculator"
GRAPHS = "vllm.v1.worker.gpu.spec_decode.dflash.cudagraph.DFlashCudaGraphManager"


@pytest.fixture(scope="module")
def installed() -> Sources:
    return Sources.installed()


def broken(findings: list[Finding]) -> dict[str, str]:
    return {str(finding.seam): finding.problem for finding in findings if not finding.holds}


def test_tested_release_has_every_seam(installed: Sources) -> None:
    findings = examine(installed, installed)
    assert broken(findings) == {}
    found = {str(finding.seam) for finding in findings}
    assert f"{SPECULATOR}.propose" in found, "an overridden method"
    assert f"{SPECULATOR}.draft_logits" in found, "an attribute"
    assert f"{GRAPHS}.run_fullgraph" in found, "one that a speculator's helper overrides"
    assert f"{GRAPHS}.capture" in found and f"{GRAPHS}.dispatch" in found, "methods that a subclass calls"
    assert "vllm.v1.worker.gpu.attn_utils.build_attn_metadata" in found, "a function"
    assert "vllm.v1.worker.gpu.model_runner.init_speculator" in found, "a name that is replaced"


def test_every_patched_name_is_listed() -> None:
    """With all modules loaded, the patches replace exactly the listed names."""
    register.apply()
    for name in {name for patch in register.PATCHES for name in patch.modules}:
        importlib.import_module(name)
    replaced = {f"{path_of(one.owner)}.{one.name}" for one in register.PATCHER.replaced}
    ours = {name for name in replaced if name.startswith("vllm.") and not name.endswith("__pydantic_fields__")}
    ours = {name for name in ours if not name.startswith("vllm.v1.metrics.stats.")}
    tables = {**seams.PATCHED, **seams.REPLACED}
    listed = {f"{place}.{name}" for place, names in tables.items() for name in names.split()}
    assert ours <= listed
    assert {name.rpartition(".")[2] for name in listed - ours} == {
        "RayWorkerProc",  # replaced when a cluster is initialized
        "RequestSpecDecodeMetrics",  # these two get another field
        "SchedulerStats",
        "vllm_xargs",  # gets another type
    }


def path_of(owner: Any) -> str:
    return owner.__name__ if isinstance(owner, ModuleType) else f"{owner.__module__}.{owner.__qualname__}"


@pytest.fixture
def another(installed: Sources, tmp_path: Path) -> Iterator[Path]:
    """A copy of the installed release, made of links; `change` replaces a link by a changed file."""
    skipped = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(installed.path / "vllm", tmp_path / "vllm", copy_function=os.symlink, ignore=skipped)
    yield tmp_path


def change(root: Path, file: str, old: str, new: str) -> None:
    path = root / "vllm" / file
    text = path.read_text()
    assert old in text, "this test's assumption about vLLM's source no longer holds"
    path.unlink()
    path.write_text(text.replace(old, new))


def test_changes_are_reported(installed: Sources, another: Path) -> None:
    gpu = "v1/worker/gpu"
    change(another, f"{gpu}/spec_decode/speculator.py", "self.draft_logits", "self.kept_logits")
    change(another, f"{gpu}/spec_decode/speculator.py", "        num_rejected: torch.Tensor,", "        rejected: int,")
    change(another, f"{gpu}/attn_utils.py", "    causal: bool", "    is_causal: bool")
    change(another, f"{gpu}/model_runner.py", "import init_speculator", "import init_speculator as build")
    change(another, "lora/model_manager.py", "def set_adapter_mapping", "def set_mapping")
    found = broken(examine(installed, Sources(another)))
    assert found[f"{SPECULATOR}.draft_logits"] == "DraftModelSpeculator has no draft_logits"
    assert "no longer takes num_rejected and now takes rejected" in found[f"{SPECULATOR}.propose"]
    assert found["vllm.v1.worker.gpu.attn_utils.build_attn_metadata"].endswith("no longer takes causal there")
    assert found["vllm.v1.worker.gpu.model_runner.init_speculator"].endswith("has no init_speculator")
    assert found["vllm.lora.model_manager.LoRAModelManager.set_adapter_mapping"]
    assert len(found) == 5


def test_doctor_reports_changes(another: Path) -> None:
    (another / "vllm/lora/model_manager.py").unlink()
    checks = list(check_contract(another))
    assert [check.name for check in checks if not check.passed] == ["attribute"]
    assert "vllm.lora.model_manager has no LoRAModelManager" in checks[0].detail
    assert "seams hold in" in checks[-1].detail


def test_doctor_refuses_a_folder_without_vllm(tmp_path: Path) -> None:
    (check,) = check_contract(tmp_path)
    assert "neither a vLLM wheel nor a folder" in check.detail and "pip download" in check.remedy


@pytest.fixture(scope="module")
def newest() -> Path:
    """The newest wheel: the one in VLLM_NLD_CONTRACT, or the one that pip finds, kept in a cache."""
    if given := os.environ.get("VLLM_NLD_CONTRACT"):
        return Path(given)
    try:
        return fetch()
    except LookupError as error:
        pytest.skip(str(error))


def test_newest_release(installed: Sources, newest: Path, record_property) -> None:
    """A reviewed release must match BROKEN. For a newer one, report what changed and skip."""
    found = broken(examine(installed, Sources(newest)))
    for seam, problem in found.items():
        record_property(seam, problem)
    if version(newest) not in BROKEN:
        pytest.skip(f"vLLM {version(newest)} is new; seams to look at: {found or 'none'}; then add it to BROKEN")
    assert found.keys() == BROKEN[version(newest)], found
