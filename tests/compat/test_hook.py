"""The import hook: survives look-ups, fires right after a module's code has run, and hides nothing."""

import importlib
import importlib.resources
import importlib.util
import inspect
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from vllm_nld.compat.hook import ImportHook

NUMBERS = itertools.count()


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module that is on the path and not imported; its code counts how often it has run in `sys.nld_runs`."""
    name = f"hooked_{next(NUMBERS)}"
    (tmp_path / f"{name}.py").write_text("class Engine:\n    speed = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def fired(name: str) -> Iterator[list[ModuleType]]:
    """The modules that the hook, which watches `name`, has fired for."""
    modules: list[ModuleType] = []
    hook = ImportHook(modules.append)
    hook.watch(name)
    yield modules
    hook.remove()


def test_fires_after_the_code_has_run(name: str, fired: list[ModuleType]) -> None:
    assert fired == []
    module = importlib.import_module(name)
    assert fired == [module] and module.Engine.speed == 1
    importlib.import_module(name)
    assert fired == [module], "a second import runs no code"


def test_survives_look_ups(name: str, fired: list[ModuleType]) -> None:
    for _ in range(2):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        assert spec.loader.get_source(name).startswith("class Engine")  # type: ignore[attr-defined]
    assert fired == []
    assert fired == [importlib.import_module(name)]


def test_a_look_up_while_the_module_is_imported(name: str, fired: list[ModuleType], tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text(f"import importlib.util\nimportlib.util.find_spec({name!r})\n")
    assert fired == [importlib.import_module(name)]


def test_a_spec_that_was_looked_up_can_be_executed(name: str, fired: list[ModuleType]) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert fired == [module]


def test_fires_once_for_each_reload(name: str, fired: list[ModuleType]) -> None:
    module = importlib.import_module(name)
    importlib.reload(module)
    importlib.reload(module)
    assert fired == [module] * 3


def test_the_module_keeps_its_own_loader(name: str, fired: list[ModuleType]) -> None:
    module = importlib.import_module(name)
    plain = importlib.import_module("tests.compat")
    assert type(module.__loader__).__name__ == "SourceFileLoader"
    assert module.__spec__ is not None and module.__spec__.loader is module.__loader__
    assert type(plain.__loader__) is not type(fired)
    assert inspect.getsource(module.Engine).startswith("class Engine")


def test_errors_end_the_import(name: str) -> None:
    def fail(module: ModuleType) -> None:
        raise LookupError(f"nothing to patch in {module.__name__}")

    hook = ImportHook(fail)
    hook.watch(name)
    try:
        for _ in range(2):
            with pytest.raises(LookupError, match="nothing to patch"):
                importlib.import_module(name)
            assert name not in sys.modules, "no unpatched module is left behind"
    finally:
        hook.remove()
    assert importlib.import_module(name).Engine.speed == 1


def test_two_hooks_both_fire(name: str, fired: list[ModuleType]) -> None:
    others: list[ModuleType] = []
    hook = ImportHook(others.append)
    hook.watch(name)
    try:
        assert [importlib.import_module(name)] == fired == others
    finally:
        hook.remove()


def test_a_package_keeps_its_files(name: str, fired: list[ModuleType], tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").unlink()
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "data.txt").write_text("hello")
    assert fired == [importlib.import_module(name)]
    assert importlib.resources.files(name).joinpath("data.txt").read_text() == "hello"


def test_a_module_that_does_not_exist(fired: list[ModuleType]) -> None:
    hook = ImportHook(fired.append)
    hook.watch("no_such_module_anywhere")
    try:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("no_such_module_anywhere")
    finally:
        hook.remove()
    assert fired == []
