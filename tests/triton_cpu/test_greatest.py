"""The vectorised argmax equals a plain float comparison, for every length and every kind of number."""

import ctypes
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numba import cfunc, types

from tests.triton_cpu.harness import CASES, SEEDS, generator, ints
from vllm_nld.triton_cpu import native
from vllm_nld.triton_cpu.twins.sampling import CHUNK, greatest

POINTERS = {torch.float32: types.float32, torch.bfloat16: types.uint16}


def compiled(dtype: torch.dtype):  # type: ignore[no-untyped-def]  # a C function
    def twin(place, value, logits, begin, end):  # type: ignore[no-untyped-def]
        best, winner = greatest(logits, 0, begin, end)
        place[0], value[0] = winner, best

    pointers = [types.CPointer(kind) for kind in (types.int64, types.float64, POINTERS[dtype])]
    owner = cfunc(types.void(*pointers, types.int64, types.int64), error_model="numpy")(twin)
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 2)(owner.address)
    function.owner = owner  # type: ignore[attr-defined]  # keeps the machine code alive
    return function


FUNCTIONS = {dtype: compiled(dtype) for dtype in POINTERS}
SPECIAL = (math.nan, -math.nan, -math.inf, math.inf, -0.0, 0.0, 1e-40, -1e-40, -3e38, 2.5)


def plain(values: list[float], begin: int) -> tuple[float, int]:
    best, winner = -math.inf, begin
    for index in range(begin, len(values)):
        if values[index] > best:
            best, winner = values[index], index
    return best, winner


@CASES
@given(SEEDS, st.integers(0, 3 * CHUNK), st.integers(0, 40), st.sampled_from(list(POINTERS)), st.floats(0, 1))
def test_greatest(seed: int, length: int, begin: int, dtype: torch.dtype, share: float) -> None:
    g = generator(seed)
    row = torch.randn(begin + length + 1, generator=g).to(dtype)
    special = torch.tensor(SPECIAL, dtype=dtype)[ints(g, 0, len(SPECIAL) - 1, len(row), dtype=torch.int64)]
    row = torch.where(torch.rand(len(row), generator=g) < share, special, row).contiguous()
    place, value = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
    FUNCTIONS[dtype](place.data_ptr(), value.data_ptr(), row.data_ptr(), begin, len(row))
    expected, winner = plain(row.double().tolist(), begin)
    assert (value.item(), place.item()) == (expected, winner)


@pytest.mark.parametrize(
    "numbers", [[math.nan] * 300, [-math.inf] * 300, [math.nan, -math.inf] * 150], ids=["NaN", "-inf", "both"]
)
def test_nothing_wins(numbers: list[float]) -> None:
    row = torch.tensor(numbers, dtype=torch.float32)
    place, value = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
    FUNCTIONS[torch.float32](place.data_ptr(), value.data_ptr(), row.data_ptr(), 5, 300)
    assert (value.item(), place.item()) == (-np.inf, 5)


def test_cache_folder_depends_on_all_twins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba checks one file only; changing a helper in another file must not leave outdated code in use."""
    monkeypatch.setattr(native.config, "CACHE_DIR", str(tmp_path))
    native.cache_folder.cache_clear()
    try:
        folder = native.cache_folder()
        assert folder.parent == tmp_path and len(folder.name) == 12
        with native.twin_cache():
            assert folder == Path(native.config.CACHE_DIR)
        assert Path(native.config.CACHE_DIR) == tmp_path
    finally:
        native.cache_folder.cache_clear()
