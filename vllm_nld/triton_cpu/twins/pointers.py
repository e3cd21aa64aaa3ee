"""What Numba's pointers don't support: bfloat16, tables of addresses, and arguments that may be either kind."""

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic, overload

NEG_INF = np.float32(-np.inf)
BFLOAT16_NEG_INF = np.uint16(0xFF80)


@intrinsic
def bits_to_float(typingctx: Any, bits: Any) -> Any:
    """The float32 with these 32 bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), codegen


@intrinsic
def int32_at(typingctx: Any, address: Any) -> Any:
    """A pointer to int32 from an address held in a uint64."""
    signature = types.CPointer(types.int32)(types.uint64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return signature, codegen


def load(pointer, index):
    """`pointer[index]` as float32; a pointer to uint16 holds bfloat16."""
    raise NotImplementedError("only for compiled code")


@overload(load)
def _load(pointer, index):
    if pointer.dtype == types.uint16:
        return lambda pointer, index: bits_to_float(np.uint32(np.uint32(pointer[index]) << np.uint32(16)))
    return lambda pointer, index: np.float32(pointer[index])


@intrinsic
def float_to_bits(typingctx: Any, value: Any) -> Any:
    """The 32 bits of a float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), codegen


def store(pointer, index, value):
    """`pointer[index] = value`; a pointer to uint16 holds bfloat16, rounded to nearest even."""
    raise NotImplementedError("only for compiled code")


@overload(store)
def _store(pointer, index, value):
    if pointer.dtype != types.uint16:

        def store(pointer, index, value):
            pointer[index] = value

        return store

    def store_bfloat16(pointer, index, value):
        bits = np.uint32(float_to_bits(np.float32(value)))
        if value == value:
            bits = np.uint32(bits + np.uint32(0x7FFF) + np.uint32((bits >> np.uint32(16)) & np.uint32(1)))
        pointer[index] = np.uint16(bits >> np.uint32(16))

    return store_bfloat16


def forbid(pointer, index):
    """`pointer[index] = -inf`; a pointer to uint16 holds bfloat16."""
    raise NotImplementedError("only for compiled code")


@overload(forbid)
def _forbid(pointer, index):
    value = BFLOAT16_NEG_INF if pointer.dtype == types.uint16 else NEG_INF

    def forbid(pointer, index):
        pointer[index] = value

    return forbid


def rows_of(pointer, group):
    """The tensor itself, or the group's int32 tensor if `pointer` is a table of addresses."""
    raise NotImplementedError("only for compiled code")


@overload(rows_of)
def _rows_of(pointer, group):
    if pointer.dtype == types.uint64:
        return lambda pointer, group: int32_at(pointer[group])
    return lambda pointer, group: pointer


def value_of(value, group):
    """The number itself, or the group's number if `value` is a pointer."""
    raise NotImplementedError("only for compiled code")


@overload(value_of)
def _value_of(value, group):
    if isinstance(value, types.CPointer):
        return lambda value, group: value[group]
    return lambda value, group: value
