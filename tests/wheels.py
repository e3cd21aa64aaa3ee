"""Wheels of vLLM's GPU build, for their Python source. They are large (340 MB), so they are kept in a cache folder."""

import os
import subprocess
import sys
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vllm-nld" / "contract"
OPTIONS = ("--no-deps", "--only-binary=:all:", "--platform=manylinux_2_28_x86_64", "--python-version=3.12")


def fetch(release: str = "") -> Path:
    """The wheel of a release, of the newest one by default. Raises LookupError if there is neither index nor copy."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if release and (kept := cached(release)):
        return kept[-1]
    what = f"vllm=={release}" if release else "vllm"
    pip = [sys.executable, "-m", "pip", "download", what, *OPTIONS, "--dest", str(CACHE), "--quiet", "--retries=1"]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=300)
    if kept := cached(release):
        return kept[-1]
    raise LookupError(f"no package index, and no wheel of {what} in {CACHE}: {done.stderr.strip()[-300:]}")


def cached(release: str = "") -> list[Path]:
    """The wheels in the cache, the newest last."""
    found = CACHE.glob(f"vllm-{release}-*.whl" if release else "vllm-*.whl")
    return sorted(found, key=lambda wheel: [int(part) for part in version(wheel).split(".")[:2]])


def version(wheel: Path) -> str:
    """The release that a wheel's file name names."""
    return wheel.name.split("-")[1]
