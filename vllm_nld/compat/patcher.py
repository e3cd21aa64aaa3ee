"""Applies patches, says what has become of each in this process, and can take them away again.

patcher = Patcher(PATCHES)
patcher.apply()
print(*patcher.states())       # "in force", "waiting for vllm.v1.engine.core", ...
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from vllm_nld.compat import versions
from vllm_nld.compat.hook import ImportHook
from vllm_nld.compat.patch import Patch

ABSENT = object()
NOW = ""  # takes the place of a module's name for patches that apply immediately

Kind = Literal["in force", "waiting", "not needed", "not applied"]
TEXT = {"in force": "in force", "waiting": "waiting for {}", "not needed": "not needed here: {}"}


@dataclass(frozen=True, slots=True)
class State:
    """What has become of a patch in this process. `detail` names the modules it waits for, or the reason."""

    patch: Patch
    kind: Kind
    detail: str = ""

    def __str__(self) -> str:
        return TEXT.get(self.kind, "not applied: {}").format(self.detail)


@dataclass(frozen=True, slots=True)
class Replaced:
    """An attribute that a patch of `module` replaced, and its old value."""

    module: str
    owner: Any
    name: str
    old: Any

    def restore(self) -> None:
        if self.old is ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.old)


class Patcher:
    """Keeps each patch applied exactly once, in the given order, to each module that it is for."""

    def __init__(self, patches: Iterable[Patch]) -> None:
        self.patches = tuple(patches)
        self.replaced: list[Replaced] = []
        self._hook = ImportHook(self._patch_module)
        self._wanted: list[Patch] = []
        self._patched: dict[tuple[str, str], ModuleType | None] = {}  # (patch, module's name): the module

    def apply(self) -> None:
        """Apply what this vLLM and this machine need: now, or when the module is imported. Idempotent."""
        self._wanted = [patch for patch in self.patches if not self._left_out(patch)]
        for patch in self._wanted:
            for name in patch.modules:
                self._hook.watch(name)
            for name in patch.modules or (NOW,):
                if (name == NOW or name in sys.modules) and not self._in_force(patch, name):
                    self._run(patch, name)

    def undo(self) -> None:
        """Restore everything that the patches replaced, so that a test can see vLLM without them."""
        self._hook.remove()
        for one in reversed(self.replaced):
            one.restore()
        self.replaced.clear()
        self._patched.clear()

    def states(self) -> list[State]:
        """What is true of each patch now."""
        return [self._state(patch) for patch in self.patches]

    @staticmethod
    def _left_out(patch: Patch) -> State | None:
        found = versions.vllm_version()
        if found not in patch.versions:
            return State(patch, "not applied", f"it is for vLLM {', '.join(patch.versions)}, not for {found}")
        why = patch.not_needed()
        return State(patch, "not needed", why) if why else None

    def _state(self, patch: Patch) -> State:
        if state := self._left_out(patch):
            return state
        missing = [name for name in patch.modules or (NOW,) if not self._in_force(patch, name)]
        if not missing:
            return State(patch, "in force")
        if any(name in sys.modules or name not in self._hook.watched for name in missing):
            return State(patch, "not applied", "the plugin has not been loaded here")
        return State(patch, "waiting", ", ".join(missing))

    def _in_force(self, patch: Patch, name: str) -> bool:
        """Whether the module that is loaded now is the one that was patched."""
        key = (patch.name, name)
        return key in self._patched and self._patched[key] is sys.modules.get(name)

    def _patch_module(self, module: ModuleType) -> None:
        """The module's code has just run, so nothing in it is patched, whatever was before a reload."""
        name = module.__name__
        self.replaced = [one for one in self.replaced if one.module != name]
        mine = [patch for patch in self._wanted if name in patch.modules]
        for patch in mine:
            self._patched.pop((patch.name, name), None)
        for patch in mine:
            self._run(patch, name)

    def _run(self, patch: Patch, name: str) -> None:
        module = None if name == NOW else sys.modules[name]
        changes = patch.apply() if module is None else patch.apply(module)
        for owner, attribute, value in changes:
            self.replaced.append(Replaced(name, owner, attribute, vars(owner).get(attribute, ABSENT)))
            setattr(owner, attribute, value)
        self._patched[patch.name, name] = module
