"""The fixes to Triton's interpreter: same results, less work."""

from typing import Any

import pytest
import torch
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter as triton_interpreter
from vllm.triton_utils import tl, triton

from vllm_nld.triton_cpu import interpreter

interpreter.repair()
CALLS = 3


@triton.jit
def doubled(numbers):  # type: ignore[no-untyped-def]  # a Triton function
    return numbers + numbers


@triton.jit
def totals_kernel(out, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]  # as above
    numbers = tl.arange(0, SIZE)
    for _ in range(2):
        numbers = doubled(numbers)
    tl.store(out + tl.program_id(0), tl.sum(numbers))


@triton.jit
def product_kernel(out, a, b, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]  # as above
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))


def launch(monkeypatch: pytest.MonkeyPatch) -> int:
    """Launch a kernel that calls jit functions, check its result and return how often the language was searched."""
    searched = 0
    search = triton_interpreter._patch_builtin

    def counted(*args: Any) -> None:
        nonlocal searched
        searched += 1
        search(*args)

    monkeypatch.setattr(triton_interpreter, "_patch_builtin", counted)
    out = torch.zeros(CALLS, dtype=torch.int32)
    totals_kernel.run(out, SIZE=8, grid=(CALLS,), warmup=False)
    monkeypatch.undo()
    assert out.tolist() == [4 * sum(range(8))] * CALLS
    assert tl.core.is_builtin(tl.load) and tl.core.is_builtin(tl.tensor.__add__), "restored when the launch ends"
    return searched


def test_launch_patches_the_language_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton itself does it again for each call of a jit function: delete the fix when both numbers are equal."""
    launch(monkeypatch)  # the first launch leaves the module behind `tl.sum` patched
    fixed = launch(monkeypatch)
    monkeypatch.setattr(triton_interpreter, "_patch_lang", interpreter._patch_lang)
    assert launch(monkeypatch) > 2 * fixed


def test_overflow_is_not_checked_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton itself checks each sum and looks at no result: delete the fix when it doesn't."""
    checks: list[Any] = []
    monkeypatch.setattr(TritonSemantic, "device_assert", lambda *args: checks.append(args))
    out = torch.zeros(1, dtype=torch.int32)
    totals_kernel.run(out, SIZE=8, grid=(1,), warmup=False)
    assert not checks
    theirs = triton_interpreter.InterpreterOptions()
    assert not theirs.debug
    monkeypatch.setattr(triton_interpreter.interpreter_builder, "options", theirs)
    totals_kernel.run(out, SIZE=8, grid=(1,), warmup=False)
    assert checks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_matrices_are_multiplied_by_value(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton itself multiplies the bits of bfloat16 numbers: delete the fix when it doesn't."""
    a, b = torch.randn(2, 16, 16).to(dtype)
    out, expected = torch.zeros(16, 16), a.float() @ b.float()
    product_kernel.run(out, a, b, SIZE=16, grid=(1,), warmup=False)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-3)
    monkeypatch.setattr(triton_interpreter.InterpreterBuilder, "create_dot", interpreter._create_dot)
    product_kernel.run(out, a, b, SIZE=16, grid=(1,), warmup=False)
    assert torch.allclose(out, expected, atol=1e-5, rtol=1e-3) == (dtype != torch.bfloat16)
