"""A patch of vLLM: a function that names the attributes to replace, and its record.

    @patch("vllm.v1.engine.core")
    def keep_going(module):
        \"\"\"One line that says what the patch does.

        Symptom: what goes wrong without it.
        Cause: why.
        Delete when: the change in vLLM that makes it unnecessary.
        \"\"\"
        inherited = module.EngineCore.step

        def step(self): ...

        yield module.EngineCore, "step", step

`keep_going` is then a `Patch`. The register replaces the attributes and remembers the old ones, so a test can take the
patch away again.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from vllm_nld.compat.versions import TESTED_VLLM

Change = tuple[Any, str, Any]  # an object, an attribute of it, the attribute's new value
SECTIONS = ("Symptom:", "Cause:", "Delete when:")


@dataclass(frozen=True, slots=True)
class Patch:
    """One entry of the register.

    modules: apply once for each, right after it is imported, with the module as argument; if empty, apply immediately,
        without an argument.
    versions: the vLLM releases that the patch is for.
    apply: yields what to replace.
    not_needed: says why this machine does not need the patch; "" if it does.
    """

    name: str
    doc: str
    modules: tuple[str, ...]
    versions: tuple[str, ...]
    apply: Callable[..., Iterable[Change]]
    not_needed: Callable[[], str]

    def __post_init__(self) -> None:
        if missing := [section for section in SECTIONS if section not in self.doc]:
            raise ValueError(f"the docstring of patch {self.name} lacks {', '.join(missing)}")

    @property
    def summary(self) -> str:
        """What the patch does, in a line."""
        return self.doc.splitlines()[0]


def patch(
    *modules: str, versions: tuple[str, ...] = TESTED_VLLM, not_needed: Callable[[], str] = lambda: ""
) -> Callable[[Callable[..., Iterable[Change]]], Patch]:
    """Decorator that makes a function a Patch with the function's name and docstring."""

    def record(apply: Callable[..., Iterable[Change]]) -> Patch:
        return Patch(apply.__name__, inspect.getdoc(apply) or "", modules, versions, apply, not_needed)

    return record
