"""Repairs to Triton's interpreter, without which some of vLLM's kernels fail in it or crawl, twins or not.

They matter where the interpreter is the fallback, and in the tests, where it is the oracle. Idempotent.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime import interpreter

_create_splat = interpreter.InterpreterBuilder.create_splat
_patch_lang = interpreter._patch_lang
_patch_lang_core = interpreter._patch_lang_core


def repair() -> None:
    """Apply the repairs in this process."""
    interpreter.InterpreterBuilder.create_splat = _splat
    interpreter._patch_lang = _patch_once
    interpreter._patch_lang_core = _patch_ranges
    libdevice.log1p = _log1p
    libdevice.isnan = _isnan


def _splat(builder: Any, shape: Any, value: Any) -> Any:
    """Keep a scalar condition a condition when it meets a block.

    Symptom: "mask has unsupported dtype" where a kernel writes `mask & scalar_condition`.
    Cause: a comparison's result is labelled with its operands' type, so a splat of it makes integers.
    Delete when: Triton's interpreter labels comparisons as int1.
    """
    if value.data.dtype == np.bool_:
        return interpreter.TensorHandle(np.full(shape.shape, value.data, dtype=np.bool_), tl.int1)
    return _create_splat(builder, shape, value)


def _patch_once(function: Callable[..., Any]) -> Any:
    """Leave the language as it is where the launch has patched it already.

    Symptom: a third of an interpreted launch's time, 2 ms for every call that a kernel makes to another jit function.
    Cause: each such call looks through all of the language for builtins to replace, where none is left.
    Delete when: Triton's interpreter patches once a launch.
    """
    languages = [value for value in function.__globals__.values() if value is tl or value is tl.core]
    if languages and not any(map(_untouched, languages)):
        return interpreter._LangPatchScope()
    return _patch_lang(function)


def _untouched(language: Any) -> bool:
    """Whether a launch has yet to patch this module and the tensors in it; a launch that ends restores both."""
    return tl.core.is_builtin(language.load) or tl.core.is_builtin(language.tensor.__add__)


class LoopIndex(int):
    """A Python integer that converts like a Triton scalar."""

    def to(self, dtype: Any, **_: Any) -> Any:
        return tl.to_tensor(int(self)).to(dtype)


def _patch_ranges(lang: Any, scope: Any) -> None:
    """Let loop variables be converted.

    Symptom: "'int' object has no attribute 'to'" where a kernel converts the variable of a `tl.range` loop.
    Cause: the interpreter loops over Python integers.
    Delete when: `tl.range` yields scalars with Triton's methods in the interpreter.
    """
    _patch_lang_core(lang, scope)
    plain = lang.range

    def indices(*args: Any, **options: Any) -> Iterator[LoopIndex]:
        return map(LoopIndex, plain(*args, **options))

    scope.set_attr(lang, "range", indices)


def _log1p(value: Any) -> Any:
    """Compute what a GPU's device library would.

    Symptom: "'NoneType' object has no attribute 'dtype'" in `_resample_kernel` with draft logits and in
    `_num_nans_kernel`.
    Cause: the functions of `libdevice` are empty stubs, which only a compiler fills.
    Delete when: Triton's interpreter evaluates libdevice functions.
    """
    return tl.tensor(interpreter.TensorHandle(np.log1p(value.handle.data), value.handle.dtype), value.type)


def _isnan(value: Any) -> Any:
    """As `_log1p`."""
    result = tl.tensor(interpreter.TensorHandle(np.isnan(value.handle.data), tl.int1), tl.int1)
    result.type = tl.block_type(tl.int1, value.shape) if value.shape else tl.int1
    return result
