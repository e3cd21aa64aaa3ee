"""Our kernels compile for a GPU. Triton brings NVIDIA's assembler along, so that needs no GPU; running them does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import spec_worker

LAY = {
    **dict.fromkeys(["starts_ptr", "ids_ptr", "count_ptr", "rows_ptr", "lengths_ptr", "positions_ptr"], "*i64"),
    "masked_ptr": "*i1",
    **dict.fromkeys(["query_start_loc_ptr", "idx_mapping_ptr", "num_sampled_ptr", "num_rejected_ptr"], "*i32"),
    **{"last_sampled_ptr": "*i64", "next_prompt_ptr": "*i32"},
}
FILL = {
    **dict.fromkeys(["input_ids_ptr", "query_start_loc_ptr", "seq_lens_ptr", "table_out_ptr"], "*i32"),
    **dict.fromkeys(["positions_ptr", "slots_ptr", "plan_ptr", "ids_ptr", "starts_ptr"], "*i64"),
    **{"table_ptr": "*i32", "owned_ptr": "*i32"},
}
GROW = {
    **dict.fromkeys(["tokens_ptr", "plan_ptr", "starts_ptr", "candidates_ptr"], "*i64"),
    **{"parents_ptr": "*i32", "log_probs_ptr": "*fp32"},
}
MASK = {"bits_ptr": "*i32", "positions_ptr": "*i64", "plan_ptr": "*i64", "parents_ptr": "*i32"}
WALK = {
    **dict.fromkeys(["out_ptr", "order_ptr", "plan_ptr", "sampled_ptr"], "*i64"),
    **dict.fromkeys(["count_ptr", "path_ptr", "parents_ptr", "cu_num_logits_ptr", "tokens_ptr"], "*i32"),
}
CASES = {
    "lay, linear": ("lay_blocks_kernel", LAY, {"COUNT": False, "WIDTH": 32}),
    "lay, diffusion": ("lay_blocks_kernel", LAY, {"COUNT": True, "WIDTH": 32}),
    "fill": ("fill_pass_kernel", FILL, {"WRITE": True, "NO_SLOT": -1, "WIDTH": 32}),
    "fill, dummy run": ("fill_pass_kernel", FILL, {"WRITE": False, "NO_SLOT": -1, "WIDTH": 32}),
    "grow": ("grow_trees_kernel", GROW, {"TOP": 4, "WIDTH": 64}),
    "grow, the largest": ("grow_trees_kernel", GROW, {"TOP": 4, "WIDTH": 1024}),
    "mask rows": ("mask_rows_kernel", MASK, {"WORDS": 2}),
    "walk": ("walk_trees_kernel", WALK, {"WIDTH": 64}),
}
COMPILE = """
import sys
import triton
from kernels import {name} as kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

constants = {constants}
types = {{name: "constexpr" if name in constants else "i32" for name in kernel.arg_names}} | {types}
assert not {types}.keys() - set(kernel.arg_names)
for capability in (80, 90):
    compiled = triton.compile(ASTSource(kernel, types, constants), target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]
"""


@pytest.mark.parametrize(("name", "types", "constants"), CASES.values(), ids=CASES)
def test_compiles_for_a_gpu(name: str, types: dict[str, str], constants: dict[str, int], tmp_path: Path) -> None:
    """Outside vLLM, which takes Triton for absent where there is no GPU, and outside our interpreter."""
    assert spec_worker.__file__
    files = [Path(spec_worker.__file__).with_name(name) for name in ("kernels.py", "tree_kernels.py")]
    source = next(text for file in files if f"def {name}" in (text := file.read_text(encoding="utf-8")))
    real = source.replace("from vllm.triton_utils import tl, triton", "import triton\nimport triton.language as tl")
    assert real != source
    (tmp_path / "kernels.py").write_text(real, encoding="utf-8")
    code = COMPILE.format(name=name, types=types, constants=constants)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRITON_")}
    environment |= {"TRITON_BACKENDS_IN_TREE": "1", "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
