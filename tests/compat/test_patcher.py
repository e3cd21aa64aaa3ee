"""Patches apply once, in order, to modules loaded before or after; states tell the truth; undo restores everything."""

import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_nld.compat import versions
from vllm_nld.compat.patch import Patch, patch
from vllm_nld.compat.patcher import Patcher

NUMBERS = itertools.count()
DOC = "Test.\n\nSymptom: none.\nCause: none.\nDelete when: never."


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"patched_{next(NUMBERS)}"
    (tmp_path / f"{name}.py").write_text("class Engine:\n    def steps(self):\n        return ['vllm']\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def wrapping(word: str, *modules: str, **options: Any) -> Patch:
    """A patch that appends a word to what Engine.steps returns."""

    def apply(module: Any) -> Any:
        inherited = module.Engine.steps
        yield module.Engine, "steps", lambda self: [*inherited(self), word]

    apply.__doc__, apply.__name__ = DOC, word
    return patch(*modules, **options)(apply)


@pytest.fixture
def patched() -> Iterator[Callable[..., Patcher]]:
    made: list[Patcher] = []

    def make(*patches: Patch) -> Patcher:
        made.append(Patcher(patches))
        made[-1].apply()
        return made[-1]

    yield make
    for patcher in made:
        patcher.undo()


def steps(name: str) -> list[str]:
    return importlib.import_module(name).Engine().steps()


def test_patches_of_one_module_apply_in_order(name: str, patched: Callable[..., Patcher]) -> None:
    patched(wrapping("first", name), wrapping("second", name))
    assert steps(name) == ["vllm", "first", "second"]


def test_a_loaded_module_is_patched_at_once(name: str, patched: Callable[..., Patcher]) -> None:
    module = importlib.import_module(name)
    patched(wrapping("first", name), wrapping("second", name))
    assert module.Engine().steps() == ["vllm", "first", "second"]


@pytest.mark.parametrize("loaded", [False, True])
def test_applying_twice_applies_once(name: str, loaded: bool, patched: Callable[..., Patcher]) -> None:
    if loaded:
        importlib.import_module(name)
    patcher = patched(wrapping("once", name))
    patcher.apply()
    assert steps(name) == ["vllm", "once"]
    patcher.apply()
    assert steps(name) == ["vllm", "once"]


@pytest.mark.parametrize("loaded", [False, True])
def test_a_reloaded_module_is_patched_once_more(name: str, loaded: bool, patched: Callable[..., Patcher]) -> None:
    if loaded:
        importlib.import_module(name)
    patcher = patched(wrapping("once", name))
    importlib.reload(importlib.import_module(name))
    assert steps(name) == ["vllm", "once"]
    patcher.undo()
    assert steps(name) == ["vllm"]


def test_an_import_by_an_earlier_patch_applies_a_later_one_once(name: str, patched: Callable[..., Patcher]) -> None:
    def apply() -> Any:
        importlib.import_module(name)
        yield from ()

    apply.__doc__ = DOC
    patched(wrapping("once", name), patch()(apply))
    assert steps(name) == ["vllm", "once"]


def test_states(name: str, patched: Callable[..., Patcher]) -> None:
    patches = (
        wrapping("one", name),
        wrapping("two", name, "another_module"),
        wrapping("other", name, versions=("0.1.0",)),
        wrapping("spare", name, not_needed=lambda: "this machine is fine"),
    )
    unloaded = Patcher(patches)
    assert str(unloaded.states()[0]) == "not applied: the plugin has not been loaded here"
    patcher = patched(*patches)
    fixed = [
        f"not applied: it is for vLLM 0.1.0, not for {versions.vllm_version()}",
        "not needed here: this machine is fine",
    ]
    assert [str(state) for state in patcher.states()] == [
        f"waiting for {name}",
        f"waiting for {name}, another_module",
        *fixed,
    ]
    module = importlib.import_module(name)
    assert [str(state) for state in patcher.states()] == ["in force", "waiting for another_module", *fixed]
    assert module.Engine().steps() == ["vllm", "one", "two"]
    del sys.modules[name]
    assert str(patcher.states()[0]) == f"waiting for {name}", "the module that was patched is gone"
    assert steps(name) == ["vllm", "one", "two"], "its successor is patched too"


def test_an_error_reaches_the_caller(name: str, patched: Callable[..., Patcher]) -> None:
    def apply(module: Any) -> Any:
        yield module.Engine, "steps", module.Engine.no_such_method

    apply.__doc__ = DOC
    patcher = patched(patch(name)(apply))
    for _ in range(2):
        with pytest.raises(AttributeError, match="no_such_method"):
            importlib.import_module(name)
    assert str(patcher.states()[0]) == f"waiting for {name}"
    patcher.undo()
    importlib.import_module(name)
    with pytest.raises(AttributeError, match="no_such_method"):
        patcher.apply()
    assert patcher.states()[0].kind == "not applied"


def test_undo_restores_what_was_there_and_removes_what_was_not(name: str, patched: Callable[..., Patcher]) -> None:
    def apply(module: Any) -> Any:
        yield module, "added", 1
        yield module.Engine, "__repr__", lambda self: "patched"

    apply.__doc__ = DOC
    module = importlib.import_module(name)
    before = dict(vars(module)), dict(vars(module.Engine))
    patcher = patched(wrapping("first", name), patch(name)(apply))
    assert module.added == 1 and repr(module.Engine()) == "patched"
    patcher.undo()
    assert (dict(vars(module)), dict(vars(module.Engine))) == before
    assert steps(name) == ["vllm"]


def test_an_untested_vllm_is_left_alone(
    name: str, patched: Callable[..., Patcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "vllm_version", lambda: "0.1.0")
    meta_path = list(sys.meta_path)
    patcher = patched(wrapping("first", name))
    assert steps(name) == ["vllm"] and sys.meta_path == meta_path
    assert str(patcher.states()[0]).endswith("not for 0.1.0")


def test_a_patch_has_to_say_what_it_is_for() -> None:
    def apply(module: Any) -> Any:
        """Does something.

        Symptom: something.
        """

    with pytest.raises(ValueError, match="docstring of patch apply lacks Cause:, Delete when:"):
        patch("some.module")(apply)
