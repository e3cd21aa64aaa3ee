"""Runs a function right after a module is imported.

The worker's modules are heavy and the API server does not need them, so the plugin must not import them just to patch
them.

    hook = ImportHook(lambda module: print(module.__name__))
    hook.watch("vllm.v1.engine.core")
"""

import importlib.abc
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Executed = Callable[[ModuleType], None]


class ImportHook(importlib.abc.MetaPathFinder):
    """Calls `executed(module)` each time a watched module's code has run: at its import, and after a reload.

    It finds modules through the other finders and wraps their loaders. Looking up a spec, as
    `importlib.util.find_spec` does, calls nothing and uses nothing up.
    """

    def __init__(self, executed: Executed) -> None:
        self.executed = executed
        self.watched: set[str] = set()

    def watch(self, name: str) -> None:
        """Watch a module, from its next import or reload on."""
        self.watched.add(name)
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Watch nothing any more."""
        self.watched.clear()
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the next finder has, with our loader around its loader."""
        if fullname not in self.watched:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = Loader(spec.loader, self.executed)
                return spec
        return None


class Loader(importlib.abc.Loader):
    """Another loader, and a call when it has run a module's code. Leaves the module with its own loader."""

    def __init__(self, loader: Any, executed: Executed) -> None:
        self.loader = loader
        self.executed = executed

    def __getattr__(self, name: str) -> Any:  # get_source, get_resource_reader, ...: for whoever only looks it up
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        self.executed(module)
