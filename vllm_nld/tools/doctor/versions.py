"""Are the right releases installed?"""

import importlib.metadata
import platform
from collections.abc import Iterator

from vllm_nld import __version__
from vllm_nld.compat.versions import TESTED_VLLM, is_tested_version, vllm_version
from vllm_nld.tools.doctor.check import Check

OTHERS = ("torch", "transformers", "numba", "triton")


def check_versions() -> Iterator[Check]:
    """Python, torch, transformers, and a vLLM that vllm-nld was tested with."""
    found = {"python": platform.python_version(), "vllm-nld": __version__} | {name: version(name) for name in OTHERS}
    yield Check("versions", True, ", ".join(f"{name} {release}" for name, release in found.items()))
    try:
        vllm = vllm_version()
    except RuntimeError as error:
        yield Check("vllm", False, "not installed", str(error))
        return
    remedy = f"install a tested release: pip install 'vllm=={TESTED_VLLM[-1]}'"
    yield Check("vllm", is_tested_version(), f"{vllm} (tested: {', '.join(TESTED_VLLM)})", remedy)
    if version("vllm") == "absent":
        yield Check(
            "vllm command",
            False,
            "the CPU build is installed under another name than vLLM's command line looks up",
            "pip install ./deploy/cpu/vllm (deploy/cpu/install.py does it)",
        )


def version(name: str) -> str:
    """The installed release of a distribution, or "absent"."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
