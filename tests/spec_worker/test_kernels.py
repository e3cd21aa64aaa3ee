"""Our kernels compile for a GPU."""

from pathlib import Path

import pytest

import spec_worker
from tests.gpu_compiler import compile_kernel

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
MASK = {"bits_ptr": "*i32", "positions_ptr": "*i64", "plan_ptr": "*i64", "parents_ptr": "*i32", "ends_ptr": "*i32"}
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
    "mask rows": ("mask_rows_kernel", MASK, {"WORDS": 2, "TREE": 1, "GROUPS": 2}),
    "walk": ("walk_trees_kernel", WALK, {"WIDTH": 64}),
}


@pytest.mark.parametrize(("name", "types", "constants"), CASES.values(), ids=CASES)
def test_compiles_for_a_gpu(name: str, types: dict[str, str], constants: dict[str, int], tmp_path: Path) -> None:
    assert spec_worker.__file__
    files = [Path(spec_worker.__file__).with_name(name) for name in ("kernels.py", "tree_kernels.py")]
    file = next(file for file in files if f"def {name}(" in file.read_text(encoding="utf-8"))
    compile_kernel(file, name, types, constants, tmp_path)
