"""The private names of vLLM that we rely on: all exist in the tested release, and changes in the newest are known."""

import ast
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
from vllm_nld.compat.versions import TESTED_VLLM
from vllm_nld.contract import Finding, Sources, bodies, examine, seams
from vllm_nld.contract.judge import Function
from vllm_nld.contract.sources import defined, statements
from vllm_nld.tools.doctor.contract import check_contract

SPECULATOR = "vllm.v1.worker.gpu.spec_decode.speculator.DraftModelSpeculator"
HIT = "def _get_local_prefix_cache_hit(\n        self, request: Request"  # in vLLM's source
GRAPHS = "vllm.v1.worker.gpu.spec_decode.dflash.cudagraph.DFlashCudaGraphManager"


@pytest.fixture(scope="module")
def installed() -> Sources:
    return Sources.installed()


def broken(findings: list[Finding]) -> dict[str, str]:
    """Seams that do not hold, bodies aside."""
    return {str(one.seam): one.problem for one in findings if not one.holds and one.seam.kind != "body"}


def changed(findings: list[Finding]) -> dict[str, Finding]:
    """Bodies that somebody has to read."""
    return {str(one.seam): one for one in findings if not one.holds and one.seam.kind == "body"}


def test_tested_release_has_every_seam(installed: Sources) -> None:
    findings = examine(installed, installed)
    assert broken(findings) == {} and changed(findings) == {}
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


def test_an_override_that_passes_on_what_it_is_given_fits(installed: Sources, another: Path) -> None:
    change(another, "v1/core/sched/scheduler.py", HIT, f"{HIT}, more: int")
    findings = examine(installed, Sources(another))
    assert broken(findings) == {}
    (body,) = changed(findings)
    assert body.endswith("Scheduler._get_local_prefix_cache_hit")


def test_an_override_that_names_a_lost_parameter_does_not_fit(installed: Sources, another: Path) -> None:
    change(another, "v1/core/sched/scheduler.py", HIT, HIT.replace("request:", "asked:"))
    ((name, problem),) = broken(examine(installed, Sources(another))).items()
    assert name.endswith("Scheduler._get_local_prefix_cache_hit")
    assert problem.endswith("no longer takes request and now takes asked")


def definition(module: ast.Module, path: list[str]) -> ast.AST:
    node: ast.AST = module
    for part in path:
        assert isinstance(node, ast.Module | ast.ClassDef)
        node = next(one for one in statements(node) if part in defined(one))
    return node


def mutate(root: Path, sources: Sources, names: list[str]) -> None:
    """Add a statement to the end of every body, or a choice to a constant."""
    places: dict[str, list[ast.AST]] = {}
    for name in names:
        parts = name.split(".")
        end = max(end for end in range(len(parts)) if sources.tree(".".join(parts[:end])) is not None)
        module = ".".join(parts[:end])
        tree = sources.tree(module)
        assert tree is not None
        places.setdefault(module, []).append(definition(tree, parts[end:]))
    for module, nodes in places.items():
        file = root / f"{module.replace('.', '/')}.py"
        file = file if file.exists() else file.with_suffix("") / "__init__.py"
        lines = file.read_text().splitlines()
        for node in sorted(nodes, key=lambda node: -node.end_lineno):  # type: ignore[attr-defined]  # statements
            last = node.body[-1] if hasattr(node, "body") else None
            if last is None:
                lines[node.end_lineno - 1] += " | None"  # type: ignore[attr-defined]  # as above
            else:
                lines.insert(last.end_lineno, f"{' ' * last.col_offset}mutated = True")
        file.unlink()
        file.write_text("\n".join(lines) + "\n")


def test_every_changed_body_is_to_be_read(installed: Sources, another: Path) -> None:
    """Each in turn would take minutes; no body contains another."""
    names = list(bodies.known())
    mutate(another, installed, names)
    found = changed(examine(installed, Sources(another)))
    assert found.keys() == set(names)
    for name, finding in found.items():
        assert "body changed" in finding.problem and finding.problem.endswith("read it")
        added = [line for line in finding.diff.splitlines() if line.startswith("+")]
        assert "mutated = True" in added[-1] or added[-1].endswith("| None"), name
        assert len(added) == 1 or "#" in added[0], "a comment at the old end counts, now that a line follows it"


def test_comments_and_docstrings_need_no_reading(installed: Sources, another: Path) -> None:
    head = "    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:\n"
    change(another, "v1/core/sched/scheduler.py", head, f'{head}        """Schedules."""\n        # a comment\n\n')
    assert changed(examine(installed, Sources(another))) == {}


def test_a_lost_body_is_reported(installed: Sources, another: Path) -> None:
    change(another, "v1/engine/core.py", "def post_step(", "def after_step(")
    found = changed(examine(installed, Sources(another)))
    assert "find out what took its place" in found["vllm.v1.engine.core.EngineCore.post_step"].problem


def test_every_method_that_a_patch_replaces_is_read(installed: Sources) -> None:
    replaced = {f"{place}.{name}" for place, names in seams.PATCHED.items() for name in names.split()}
    for name in replaced:
        path, _, member = name.rpartition(".")
        home = installed.find(*path.rsplit(".", 1))
        if home is not None and isinstance(installed.members(home).get(member), Function):
            assert name in bodies.known(), name


def test_every_tested_release_has_been_read() -> None:
    for name, digests in bodies.known().items():
        assert digests.keys() >= set(TESTED_VLLM), name


def test_doctor_reports_changes(another: Path) -> None:
    (another / "vllm/lora/model_manager.py").unlink()
    checks = list(check_contract(another))
    assert [check.name for check in checks if not check.passed] == ["attribute", "what to do"]
    assert "vllm.lora.model_manager has no LoRAModelManager" in checks[0].detail
    assert "seams hold in" in checks[-2].detail
    assert "docs/new-vllm-release.md" in checks[-1].remedy


def test_doctor_shows_what_changed_in_a_body(another: Path) -> None:
    mutate(another, Sources.installed(), ["vllm.v1.engine.core.EngineCore.post_step"])
    (body, *_) = check_contract(another)
    assert body.detail == "vllm.v1.engine.core.EngineCore.post_step: body changed (+1 -0 lines): read it"
    assert "+        mutated = True" in body.more.splitlines() or "+    mutated = True" in body.more.splitlines()
    assert "--verbose" in body.remedy


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
    """Everything holds in a tested release. For a newer one, report what changed and skip."""
    findings = examine(installed, Sources(newest))
    found = broken(findings) | {name: one.problem for name, one in changed(findings).items()}
    for seam, problem in found.items():
        record_property(seam, problem)
    if version(newest) not in TESTED_VLLM:
        pytest.skip(f"vLLM {version(newest)} is new, see docs/new-vllm-release.md; to look at: {found or 'nothing'}")
    assert found == {}
