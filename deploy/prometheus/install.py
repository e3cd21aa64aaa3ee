"""Install `prometheus` and `promtool` into a virtual environment, for the tests and `python -m bench dashboard`.

    python deploy/prometheus/install.py .venv

Neither is on PyPI, so they come from Debian's package, unpacked into the environment without root. If that fails (no
apt, no network), the script prints why and exits with 1, and tests that need them are skipped.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PROGRAMS = ("prometheus", "promtool")
PACKAGE = "prometheus"  # Debian's, with both programs


def run(command: Sequence[str], cwd: Path) -> bool:
    """Run a command silently; returns whether it succeeded."""
    return subprocess.run(command, cwd=cwd, capture_output=True, check=False).returncode == 0


def download(folder: Path) -> Path | None:
    """Download Debian's package, with the machine's package lists or fresh ones (no root needed); None if it fails."""
    lists = folder / "lists"
    (lists / "partial").mkdir(parents=True)
    own = ["-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={folder}", "-o", "Debug::NoLocking=1"]
    for options in ([], own):
        if options and not run(["apt-get", *options, "update"], folder):
            return None
        if run(["apt-get", *options, "download", PACKAGE], folder):
            return next(folder.glob("*.deb"), None)
    return None


def install(environment: Path) -> str | None:
    """Install the missing programs; returns the reason if that fails, else None."""
    target = environment / "bin"
    if all((target / program).exists() for program in PROGRAMS):
        return None
    for program in PROGRAMS:
        if (found := shutil.which(program)) and not (target / program).exists():
            (target / program).symlink_to(found)
    if all((target / program).exists() for program in PROGRAMS):
        return None
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return "there is no apt to fetch them with: put prometheus and promtool on PATH"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        package = download(folder)
        if package is None or not run(["dpkg-deb", "-x", str(package), "unpacked"], folder):
            return f"apt-get download {PACKAGE} failed: put prometheus and promtool on PATH"
        for program in PROGRAMS:
            shutil.copy2(folder / "unpacked" / "usr" / "bin" / program, target / program)
    return None


if __name__ == "__main__":
    if problem := install(Path(sys.argv[1])):
        sys.exit(f"Prometheus is not installed: {problem}")
