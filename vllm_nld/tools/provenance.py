"""The provenance of a result: machine, versions and git revision, without personal names or paths.

provenance()["revision"]                        # "0c697ad", or "0c697ad, with changes"
describe(provenance())                          # one line for a report
"""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("vllm-nld", "vllm", "torch", "numba")


def provenance() -> dict[str, Any]:
    """Plain data that is constant for a given machine and checkout."""
    return {"machine": machine(), "revision": revision(), "python": platform.python_version(), "packages": versions()}


def machine() -> dict[str, Any]:
    """Processor, cores available to this process, memory, and the GPU if there is one."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": processor(), "cores": cores, "memory_gib": round(pages / 2**30), "gpu": gpu}


def processor() -> str:
    """The processor's model name from Linux, else from Python."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of the packages that affect speed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def revision() -> str:
    """The checkout's commit, plus ", with changes" if files differ from it; "unknown" outside a checkout."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!README.md", ":!docs", ":!bench/results")
        return git("rev-parse", "--short", "HEAD") + (", with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def describe(source: dict[str, Any]) -> str:
    """One line for a report."""
    where = source["machine"]
    device = where["gpu"] or f"{where['processor']}, {where['cores']} cores"
    packages = ", ".join(f"{name} {version}" for name, version in source["packages"].items())
    return f"{device}, {where['memory_gib']} GiB; {packages}, Python {source['python']}; revision {source['revision']}."
