"""Install prometheus, promtool and amtool into a virtual environment, for tests and `python -m bench dashboard`.

    python deploy/prometheus/install.py .venv

They are not on PyPI, so they come from Debian's packages, unpacked into the environment without root. If that fails (no
apt, no network), the script prints why and exits with 1, and tests that need them are skipped.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PACKAGES = {"prometheus": ("prometheus", "promtool"), "prometheus-alertmanager": ("amtool",)}  # Debian's


def run(command: Sequence[str], cwd: Path) -> bool:
    """Run a command silently; returns whether it succeeded."""
    return subprocess.run(command, cwd=cwd, capture_output=True, check=False).returncode == 0


def download(package: str, folder: Path) -> Path | None:
    """Download a package, with the machine's package lists or fresh ones (no root needed); None if it fails."""
    lists = folder / "lists"
    (lists / "partial").mkdir(parents=True)
    own = ["-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={folder}", "-o", "Debug::NoLocking=1"]
    for options in ([], own):
        if options and not run(["apt-get", *options, "update"], folder):
            return None
        if run(["apt-get", *options, "download", package], folder):
            return next(folder.glob("*.deb"), None)
    return None


def install(package: str, target: Path) -> str | None:
    """Install a package's missing programs into a folder; returns the reason if that fails, else None."""
    for program in PACKAGES[package]:
        if (found := shutil.which(program)) and not (target / program).exists():
            (target / program).symlink_to(found)
    missing = [program for program in PACKAGES[package] if not (target / program).exists()]
    if not missing:
        return None
    advice = f"put {' and '.join(missing)} on PATH"
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return f"there is no apt to fetch {package} with: {advice}"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        file = download(package, folder)
        if file is None or not run(["dpkg-deb", "-x", str(file), "unpacked"], folder):
            return f"apt-get download {package} failed: {advice}"
        for program in missing:
            shutil.copy2(folder / "unpacked" / "usr" / "bin" / program, target / program)
    return None


if __name__ == "__main__":
    problems = [problem for package in PACKAGES if (problem := install(package, Path(sys.argv[1]) / "bin"))]
    if problems:
        sys.exit("\n".join(f"Not installed: {problem}" for problem in problems))
