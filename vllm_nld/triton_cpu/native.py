"""Compiles a twin for its argument types and calls it with the tensors' addresses.

A twin is a plain Python function over Numba pointers. It takes the two grid sizes and then the kernel's own parameters,
by their names without `_ptr`. A parameter that only some releases of a kernel have is last and has a
default. Numba compiles it to a C function once per combination of types and caches it on disk, so only the
first start-up pays for it. Passing addresses costs a tenth of passing array views, and a kernel's contract is addresses
and strides anyway.

    native = Native(twins.block_table.gather_block_tables, kernel.arg_names)
    native.launch((groups, requests), *tensors, BLOCK_SIZE=1024)
"""

import contextlib
import ctypes
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numba import cfunc, config, types

Grid = Sequence[int] | Callable[[dict[str, Any]], Sequence[int]]

# Numba has no bfloat16, so a pointer to uint16 stands in and `pointers.load` converts. No kernel takes real uint16.
POINTERS = {
    torch.bool: types.uint8,
    torch.uint8: types.uint8,
    torch.int32: types.int32,
    torch.int64: types.int64,
    torch.uint64: types.uint64,
    torch.bfloat16: types.uint16,
    torch.float32: types.float32,
    torch.float64: types.float64,
}


class Native:
    """A twin, compiled on demand. The function's attribute `absent` lists parameters that it accepts only as None.

    arg_names: the kernel's parameters. defaults: their defaults. constants: what the twin is given besides, by name.
    Raises ValueError if the twin lacks one of the kernel's parameters, or needs another one.
    """

    def __init__(
        self,
        function: Callable[..., None],
        arg_names: Sequence[str],
        defaults: Mapping[str, Any] = MappingProxyType({}),
        constants: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.function = function
        self.arg_names = tuple(arg_names)
        self.defaults = defaults
        self._order, self._extra = arrangement(function, self.arg_names, constants)
        self._compiled: dict[tuple[Any, ...], Callable[..., None]] = {}
        self._owners: list[Any] = []

    def launch(self, grid: Grid, *args: Any, **options: Any) -> None:
        """Run the twin with a kernel's launch arguments. Options such as num_warps are ignored.

        Raises TypeError before writing anything if an argument is missing or its type is unsupported.
        """
        if len(args) < len(self.arg_names):
            args += tuple([self._argument(name, options) for name in self.arg_names[len(args) :]])
        if callable(grid):
            grid = grid(dict(zip(self.arg_names, args, strict=True)))
        if self._order is not None:
            args += self._extra
            args = tuple([args[index] for index in self._order])
        values: list[Any] = [grid[0], grid[1] if len(grid) > 1 else 1]
        key: list[Any] = []
        for arg in args:
            kind = type(arg)
            if kind is torch.Tensor or isinstance(arg, torch.Tensor):
                values.append(arg.data_ptr())
                key.append(arg.dtype)
            elif kind is int or kind is bool:
                values.append(arg)
                key.append(int)
            elif arg is None:
                values.append(None)
                key.append(None)
            elif isinstance(arg, (float, np.floating)):
                values.append(float(arg))
                key.append(float)
            else:
                values.append(int(arg))
                key.append(int)
        types_key = tuple(key)
        compiled = self._compiled.get(types_key)
        if compiled is None:
            compiled = self._compiled[types_key] = self._compile(types_key)
        compiled(*values)

    def _argument(self, name: str, options: dict[str, Any]) -> Any:
        if name in options:
            return options[name]
        if name in self.defaults:
            return self.defaults[name]
        raise TypeError(f"{self.function.__name__} without the argument {name!r}")

    def _compile(self, key: tuple[Any, ...]) -> Callable[..., None]:
        absent = getattr(self.function, "absent", ())
        taken = [*inspect.signature(self.function).parameters][2:]
        if present := [name for name in absent if key[taken.index(name)] is not None]:
            raise TypeError(f"{self.function.__name__} with {present[0]}")
        arguments: list[Any] = [types.int64, types.int64]
        prototype: list[Any] = [ctypes.c_int64, ctypes.c_int64]
        for kind in key:
            if kind is int:
                arguments.append(types.int64)
                prototype.append(ctypes.c_int64)
            elif kind is float:
                arguments.append(types.float64)
                prototype.append(ctypes.c_double)
            elif kind is None:
                arguments.append(types.none)
                prototype.append(ctypes.c_void_p)
            elif kind in POINTERS:
                arguments.append(types.CPointer(POINTERS[kind]))
                prototype.append(ctypes.c_void_p)
            else:
                raise TypeError(f"{self.function.__name__} with an argument of type {kind}")
        signature = types.void(*arguments)
        try:
            with twin_cache():
                compiled = cfunc(signature, cache=True, error_model="numpy")(self.function)
        except RuntimeError:  # Numba has no writable cache folder
            compiled = cfunc(signature, error_model="numpy")(self.function)
        self._owners.append(compiled)  # keeps the machine code alive
        return ctypes.CFUNCTYPE(None, *prototype)(compiled.address)


def plain(name: str) -> str:
    """A parameter's name as kernels and twins share it."""
    return name.removesuffix("_ptr")


def arrangement(
    function: Callable[..., None], arg_names: Sequence[str], constants: Mapping[str, Any]
) -> tuple[list[int] | None, tuple[Any, ...]]:
    """(the place of each twin parameter among the kernel's arguments and the extra ones, the extra arguments).

    None for the places if the twin's parameters are exactly the kernel's, in the same order.
    """
    taken = [*inspect.signature(function).parameters.values()][2:]
    places = {plain(name): place for place, name in enumerate(arg_names)}
    if unknown := places.keys() - {plain(parameter.name) for parameter in taken}:
        raise ValueError(f"the twin {function.__name__} does not know the parameters {', '.join(sorted(unknown))}")
    extra: list[Any] = []
    for parameter in taken:
        if plain(parameter.name) in places:
            continue
        value = constants.get(parameter.name, parameter.default)
        if value is inspect.Parameter.empty:
            raise ValueError(f"the kernel of the twin {function.__name__} has no parameter {parameter.name}")
        places[plain(parameter.name)] = len(arg_names) + len(extra)
        extra.append(value)
    order = [places[plain(parameter.name)] for parameter in taken]
    return (None if order == list(range(len(arg_names))) else order), tuple(extra)


@contextlib.contextmanager
def twin_cache() -> Iterator[None]:
    """Make Numba cache what it compiles here in a folder specific to the twins' current source.

    Numba's own check covers only the compiled function's file, so it would keep using code with an outdated helper
    inlined from another file.
    """
    before = config.CACHE_DIR
    config.CACHE_DIR = str(cache_folder())
    try:
        yield
    finally:
        config.CACHE_DIR = before


@functools.cache
def cache_folder() -> Path:
    """Named after a digest of the twins' source; in NUMBA_CACHE_DIR if set, else next to the twins."""
    twins = Path(__file__).with_name("twins")
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(twins.glob("*.py")))).hexdigest()[:12]
    return (Path(config.CACHE_DIR) if config.CACHE_DIR else twins / "__pycache__") / digest
