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
CASES = {
    "lay, linear": ("lay_blocks_kernel", LAY, {"COUNT": False, "WIDTH": 32}),
    "lay, diffusion": ("lay_blocks_kernel", LAY, {"COUNT": True, "WIDTH": 32}),
    "fill": ("fill_pass_kernel", FILL, {"WRITE": True, "NO_SLOT": -1, "WIDTH": 32}),
    "fill, dummy run": ("fill_pass_kernel", FILL, {"WRITE": False, "NO_SLOT": -1, "WIDTH": 32}),
}


@pytest.mark.parametrize(("name", "types", "constants"), CASES.values(), ids=CASES)
def test_compiles_for_a_gpu(name: str, types: dict[str, str], constants: dict[str, int], tmp_path: Path) -> None:
    assert spec_worker.__file__
    compile_kernel(Path(spec_worker.__file__).with_name("kernels.py"), name, types, constants, tmp_path)
