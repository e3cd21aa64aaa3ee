"""Which of vLLM's names we rely on, and whether another release still has them: read from source, nothing imported.

troubles = examine(Sources.installed(), Sources(Path("vllm-0.33.0-….whl")))
vllm-nld doctor --contract vllm-0.33.0-….whl
"""

from vllm_nld.contract.judge import Finding, examine
from vllm_nld.contract.sources import Sources

__all__ = ["Finding", "Sources", "examine"]
