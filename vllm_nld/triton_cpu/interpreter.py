"""Fixes to Triton's interpreter, without which some of vLLM's kernels fail or crawl in it.

They matter when the interpreter is the fallback, and in the tests, where it is the oracle. Idempotent.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime import interpreter

_create_splat = interpreter.InterpreterBuilder.create_splat
_create_dot = interpreter.InterpreterBuilder.create_dot
_patch_lang = interpreter._patch_lang
_patch_lang_core = interpreter._patch_lang_core


def repair() -> None:
    """Apply the fixes in this process."""
    interpreter.InterpreterBuilder.create_splat = _splat
    interpreter.InterpreterBuilder.create_dot = _dot
    interpreter._patch_lang = _patch_once
    interpreter._patch_lang_core = _patch_ranges
    interpreter.interpreter_builder.options = _without_vain_checks(interpreter.interpreter_builder.options)
    libdevice.log1p = _log1p
    libdevice.isnan = _isnan


def _splat(builder: Any, shape: Any, value: Any) -> Any:
    """Keep a scalar condition boolean when it is broadcast to a block.

    Symptom: "mask has unsupported dtype" if a kernel computes `mask & scalar_condition`.
    Cause: a comparison's result is labelled with its operands' type, so splatting it gives integers.
    Delete when: Triton's interpreter labels comparisons as int1.
    """
    if value.data.dtype == np.bool_:
        return interpreter.TensorHandle(np.full(shape.shape, value.data, dtype=np.bool_), tl.int1)
    return _create_splat(builder, shape, value)


def _dot(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
    """Multiply bfloat16 matrices by value.

    Symptom: products of bfloat16 matrices are around 10⁹.
    Cause: the interpreter keeps bfloat16 numbers as the integers of their bits, and multiplies these.
    Delete when: Triton's interpreter converts bfloat16 operands.
    """
    a, b = (builder.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
    return _create_dot(builder, a, b, *rest)


def _patch_once(function: Callable[..., Any]) -> Any:
    """Skip patching the language if the launch has already done it.

    Symptom: a third of an interpreted launch's time goes here, 2 ms per call from a kernel to another jit function.
    Cause: each such call searches the whole language for builtins to replace, and none are left.
    Delete when: Triton's interpreter patches once per launch.
    """
    languages = [value for value in function.__globals__.values() if value is tl or value is tl.core]
    if languages and not any(map(_untouched, languages)):
        return interpreter._LangPatchScope()
    return _patch_lang(function)


def _untouched(language: Any) -> bool:
    """Whether this module and its tensor class are not patched now; a launch restores both when it ends."""
    return tl.core.is_builtin(language.load) or tl.core.is_builtin(language.tensor.__add__)


def _without_vain_checks(options: Any) -> Any:
    """Do not look for overflow unless somebody is told.

    Symptom: a quarter of an interpreted launch's time goes here.
    Cause: each sum, difference and product of integers is computed again in 64 bits and compared; the result is only
    looked at with `debug`, which is off.
    Delete when: Triton computes the check only with `debug`.
    """
    return replace(options, sanitize_overflow=options.debug)


class LoopIndex(int):
    """A Python integer that converts like a Triton scalar."""

    def to(self, dtype: Any, **_: Any) -> Any:
        return tl.to_tensor(int(self)).to(dtype)


def _patch_ranges(lang: Any, scope: Any) -> None:
    """Make loop variables convertible.

    Symptom: "'int' object has no attribute 'to'" if a kernel converts the variable of a `tl.range` loop.
    Cause: the interpreter loops over Python integers.
    Delete when: `tl.range` yields scalars with Triton's methods in the interpreter.
    """
    _patch_lang_core(lang, scope)
    plain = lang.range

    def indices(*args: Any, **options: Any) -> Iterator[LoopIndex]:
        return map(LoopIndex, plain(*args, **options))

    scope.set_attr(lang, "range", indices)


def _log1p(value: Any) -> Any:
    """Compute what the GPU's device library would.

    Symptom: "'NoneType' object has no attribute 'dtype'" in `_resample_kernel` with draft logits and in
    `_num_nans_kernel`.
    Cause: `libdevice` functions are empty stubs that only a compiler fills in.
    Delete when: Triton's interpreter evaluates libdevice functions.
    """
    return tl.tensor(interpreter.TensorHandle(np.log1p(value.handle.data), value.handle.dtype), value.type)


def _isnan(value: Any) -> Any:
    """See `_log1p`."""
    result = tl.tensor(interpreter.TensorHandle(np.isnan(value.handle.data), tl.int1), tl.int1)
    result.type = tl.block_type(tl.int1, value.shape) if value.shape else tl.int1
    return result
