"""Compiles our Triton kernels for GPUs. Triton brings NVIDIA's assembler along, so that needs no GPU; running does."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

COMPILE = """
import sys
import triton
from kernels import {name} as kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

constants = {constants}
types = {{name: "constexpr" if name in constants else "i32" for name in kernel.arg_names}} | {types}
assert not (constants | {types}).keys() - set(kernel.arg_names)
for capability in (80, 90):
    compiled = triton.compile(ASTSource(kernel, types, constants), target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= {shared}, compiled.metadata.shared
"""
SHARED = 99 * 1024  # bytes of shared memory per program that every GPU from sm_80 on has


def compile_kernel(file: Path, name: str, types: dict[str, str], constants: dict[str, Any], work: Path) -> None:
    """Compile a kernel of `file` for sm_80 and sm_90. `types` are those of arguments that are no int32.

    It runs outside vLLM, which takes Triton for absent where there is no GPU, and outside our interpreter.
    """
    source = file.read_text(encoding="utf-8")
    real = source.replace("from vllm.triton_utils import tl, triton", "import triton\nimport triton.language as tl")
    assert real != source
    (work / "kernels.py").write_text(real, encoding="utf-8")
    code = COMPILE.format(name=name, types=types, constants=constants, shared=SHARED)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRITON_")}
    environment |= {"TRITON_BACKENDS_IN_TREE": "1", "TRITON_CACHE_DIR": str(work / "cache")}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
