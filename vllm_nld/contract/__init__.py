"""Checks what we rely on in another vLLM release: names that are gone, functions that changed. Imports nothing of it.

findings = examine(Sources.installed(), Sources(Path("vllm-0.33.0-….whl")))
vllm-nld doctor --contract vllm-0.33.0-….whl
"""

from vllm_nld.contract.judge import Finding, examine
from vllm_nld.contract.sources import Sources

__all__ = ["Finding", "Sources", "examine"]
