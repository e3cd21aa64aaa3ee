"""Sends each kernel launch to its native twin, or to Triton's interpreter where there is none.

Triton's interpreter wraps every kernel in one class whose `kernel[grid]` makes a launcher, so that is the one place to
decide, in whatever order modules were imported. `vllm_nld.compat.cpu` installs `route` in its place, in every process
of vLLM's CPU build only.

    InterpretedFunction.__getitem__ = route
    kernel[grid](*args)      # native, else interpreted and named once at INFO
    launched()               # {"vllm….block_table._gather_block_tables_kernel": "native", …}
"""

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from triton.runtime.interpreter import InterpretedFunction
from vllm.logger import init_logger

from vllm_nld.triton_cpu import registry

logger = init_logger("vllm.plugins.nld.triton_cpu")  # under "vllm", where its log level and format apply

_interpret = InterpretedFunction.__getitem__
_launched: dict[str, registry.State] = {}


def uninstall() -> None:
    """Interpret every kernel again, for a comparison."""
    InterpretedFunction.__getitem__ = _interpret


def launched() -> dict[str, registry.State]:
    """How each kernel that was launched in this process ran, by module.kernel; `interpreted` wins where both
    happened."""
    return dict(_launched)


def forget_launches() -> None:
    """Empty `launched`, for a test that asks about its own launches only."""
    _launched.clear()


def route(kernel: InterpretedFunction, grid: Any) -> Callable[..., Any]:
    """What `kernel[grid]` gives: a launcher of the twin, or the interpreter's."""
    try:
        native, name = kernel.nld_twin
    except AttributeError:
        native, name = kernel.nld_twin = _find(kernel)
    if native is None:
        _launched[name] = "interpreted"
        return _interpret(kernel, grid)
    return partial(_launch, kernel, native, name, grid)


def _launch(kernel: InterpretedFunction, native: Any, name: str, grid: Any, *args: Any, **options: Any) -> None:
    try:
        native.launch(grid, *args, **options)
    except TypeError as error:  # of the launch's arguments, before anything ran
        logger.info("Triton kernel %s runs in the interpreter, slowly: no native twin for %s.", name, error)
        kernel.nld_twin = None, name
        _launched[name] = "interpreted"
        _interpret(kernel, grid)(*args, **options)
    else:
        _launched.setdefault(name, "native")


def _find(kernel: InterpretedFunction) -> tuple[Any, str]:
    """The compiled twin of a kernel, or None; says once why there is none."""
    module, function = kernel.fn.__module__, kernel.fn.__qualname__
    name = f"{module}.{function}"
    twin = registry.BY_NAME.get((module, function))
    if twin is None:
        logger.info("Triton kernel %s has no native twin: it runs in the interpreter, slowly.", name)
        return None, name
    if not registry.is_current(twin):
        logger.warning(
            "Triton kernel %s is not the one that its native twin was written for: it runs in the interpreter, slowly.",
            name,
        )
        return None, name
    return load(twin, kernel), name


def load(twin: registry.Twin, kernel: InterpretedFunction) -> Any:
    """The twin, ready to launch with the kernel's arguments. Numba is imported here, at the first launch."""
    from vllm_nld.triton_cpu.native import Native

    function = getattr(importlib.import_module(f"vllm_nld.triton_cpu.twins.{twin.area}"), twin.function)
    parameters = inspect.signature(kernel.fn).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return Native(function, kernel.arg_names, defaults)
