"""vllm-nld: Nemotron-Labs-Diffusion models in vLLM.

An out-of-tree vLLM plugin. Importing this package imports neither torch nor vLLM; vLLM calls `register` (the entry
point `vllm.general_plugins: nld`) once in every process it starts.
"""

__version__ = "0.1.0"


def register() -> None:
    """Register configs, models and platform fixes with vLLM. Idempotent: vLLM may call it twice in a process."""
    from vllm_nld.serving.plugin import register as register_with_vllm

    register_with_vllm()


def __getattr__(name: str) -> object:
    if name == "Generator":
        from vllm_nld.tools.generator import Generator

        return Generator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
