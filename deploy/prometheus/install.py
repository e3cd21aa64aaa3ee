"""Put `prometheus` and `promtool` into a virtual environment, for the tests and `python -m bench dashboard`.

    python deploy/prometheus/install.py .venv

Neither is on PyPI, so they come from Debian's package, unpacked beside the environment without root. Where that is not
possible (no apt, no network) it says so and exits with 1, and what needs them is skipped.
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
    """Whether the command ended well; its output is of no interest where it did."""
    return subprocess.run(command, cwd=cwd, capture_output=True, check=False).returncode == 0


def download(folder: Path) -> Path | None:
    """Debian's package, fetched with the machine's package lists, or with fresh ones that need no root."""
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
    """Install what is missing; returns why that is not possible, or None."""
    target = environment / "bin"
    if all((target / program).exists() for program in PROGRAMS):
        return None
    for program in PROGRAMS:
        if (found := shutil.which(program)) and not (target / program).exists():
            (target / program).symlink_to(found)
    if all((target / program).exists() for program in PROGRAMS):
        return None
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return "put prometheus and promtool on PATH: they are not there, and without apt they cannot be fetched"
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
