"""`vllm-nld doctor` as a user runs it: exit status, the line that failed, and its remedy.

In a process of its own where the plugin is loaded or not by what that process finds.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import write_tiny_checkpoint
from vllm_nld.serving import cpu
from vllm_nld.tools.cli import main
from vllm_nld.tools.doctor import Check
from vllm_nld.tools.doctor.machine import check_cpu, check_threads

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).with_name("vllm-nld"))


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def test_passes_on_a_good_checkpoint_and_speaks_json(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tiny_checkpoint), "--json"]) == 0
    report, progress = capsys.readouterr()
    checks = {check["name"]: check for check in json.loads(report)}
    assert all(check["passed"] for check in checks.values())
    expected = {"versions", "vllm", "plugin", "architectures", "attention", "triton", "device", "checkpoint"}
    assert expected <= checks.keys()
    assert "auto, ar, linear" in checks["modes"]["detail"]
    assert "plugin (imports vLLM" in progress
    assert "NemotronLabsDiffusionModel" in checks["checkpoint"]["detail"]
    assert "linear_spec_lora" in checks["draft adapter"]["detail"]


def test_says_what_is_true_of_each_patch_now(tiny_checkpoint: Path) -> None:
    """A worker's module is not loaded here; the configuration's is."""
    result = doctor("--verbose")
    assert result.returncode == 0, result.stdout
    report = " ".join(result.stdout.split())
    assert "ok reserve_block_slots in force. Reserve KV slots" in report
    assert "ok skip_idle_drafter waiting for vllm.v1.worker.gpu.model_runner. Do not run" in report
    assert report.count("ok use_native_kernels") == 1 and "_gumbel_sample_kernel" in report


def test_the_short_report_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    report = capsys.readouterr().out
    assert "in force" in report and "checks passed" in report
    assert torch.cuda.is_available() or "VLLM_CPU_OMP_THREADS_BIND" in report, "what it sees, and what would suit it"
    assert "skip_idle_drafter" not in report and "_gumbel_sample_kernel" not in report
    assert len(report.splitlines()) < 30 and max(map(len, report.splitlines())) <= 120


@pytest.mark.parametrize(
    ("load", "threads", "bind", "said"),
    [
        (0.1, None, None, "Good for large models on an idle machine"),
        (3.0, None, None, "OMP_NUM_THREADS=1 is steadier"),
        (3.0, "2", "0,1", "set VLLM_CPU_OMP_THREADS_BIND=nobind"),
        (3.0, "1", "nobind", "Steady, and enough for small models"),
    ],
)
def test_advises_on_threads(
    load: float, threads: str | None, bind: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    for name, value in {"OMP_NUM_THREADS": threads, "VLLM_CPU_OMP_THREADS_BIND": bind}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    assert said in check_threads().detail


def test_advises_on_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    for emulates in (True, False):
        monkeypatch.setattr(cpu, "emulates_half_precision", lambda said=emulates: said)
        assert ("--dtype float32" in check_cpu().detail) is emulates


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_serve_asks_first(tmp_path: Path) -> None:
    """On a CPU, the small checkpoint then runs on one unbound thread."""
    (tmp_path / ".ready").touch()
    for arguments, threads in ([], True), ([f"MODEL={tmp_path}"], False):
        command = ["make", "-n", "serve", f"VENV={tmp_path}", "RUNTIME=cpu", *arguments]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert 0 < said.index("vllm-nld doctor") < said.index("vllm serve")
        assert all((setting in said) is threads for setting in ("OMP_NUM_THREADS:-1", "OMP_THREADS_BIND:-nobind"))


def test_says_how_to_enable_a_disabled_plugin() -> None:
    result = doctor(VLLM_PLUGINS="none")
    assert result.returncode == 1
    assert "VLLM_PLUGINS=none keeps vLLM from loading it" in result.stdout
    assert "unset VLLM_PLUGINS" in result.stdout


def test_names_the_file_and_the_remedy_of_a_broken_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tiny_checkpoint(tmp_path)
    (path / "model.safetensors").write_bytes(b"not weights")
    assert main(["doctor", str(path)]) == 1
    report = capsys.readouterr().out
    assert "model.safetensors is damaged" in report
    assert "-> download it again" in report


def test_names_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path / "absent")]) == 1
    assert "absent/config.json does not exist" in capsys.readouterr().out


def test_a_failed_check_needs_a_remedy() -> None:
    with pytest.raises(ValueError, match="needs a remedy"):
        Check("x", False, "broken")
