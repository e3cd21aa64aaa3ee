"""Routes each kernel launch to its native twin, or to Triton's interpreter if it has none.

Triton's interpreter wraps every kernel in one class, whose `kernel[grid]` returns a launcher. Deciding there works
whatever the import order. `vllm_nld.compat.cpu` installs `route` there in every process, with vLLM's CPU build only.

    InterpretedFunction.__getitem__ = route
    kernel[grid](*args)      # native, or interpreted and logged once at INFO
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
    """Interpret every kernel again, for comparisons."""
    InterpretedFunction.__getitem__ = _interpret


def launched() -> dict[str, registry.State]:
    """How each kernel launched in this process ran, by module.kernel; `interpreted` if it ran both ways."""
    return dict(_launched)


def route(kernel: InterpretedFunction, grid: Any) -> Callable[..., Any]:
    """The launcher that `kernel[grid]` returns: the native twin's, or the interpreter's."""
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
    except TypeError as error:  # unsupported arguments, raised before anything ran
        logger.info("Triton kernel %s runs in the slow interpreter: no native twin for %s.", name, error)
        kernel.nld_twin = None, name
        _launched[name] = "interpreted"
        _interpret(kernel, grid)(*args, **options)
    else:
        _launched.setdefault(name, "native")


def _find(kernel: InterpretedFunction) -> tuple[Any, str]:
    """The kernel's compiled twin and its name; logs why if there is no twin."""
    module, function = kernel.fn.__module__, kernel.fn.__qualname__
    name = f"{module}.{function}"
    if (module, function) not in registry.NAMES:
        logger.info("Triton kernel %s has no native twin: it runs in the slow interpreter.", name)
        return None, name
    twin = registry.find(module, function)
    if twin is None:
        logger.warning(
            "Triton kernel %s differs from those that its native twin was written for: it runs in the slow "
            "interpreter.",
            name,
        )
        return None, name
    return load(twin, kernel), name


def load(twin: registry.Twin, kernel: InterpretedFunction) -> Any:
    """The twin, ready to launch with the kernel's arguments. Imports Numba, so only at the first launch."""
    from vllm_nld.triton_cpu.native import Native

    area, name = twin.function.split(".")
    function = getattr(importlib.import_module(f"vllm_nld.triton_cpu.twins.{area}"), name)
    parameters = inspect.signature(kernel.fn).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return Native(function, kernel.arg_names, defaults, dict.fromkeys(twin.constants, True))
