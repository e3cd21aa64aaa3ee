"""The source of a vLLM release, a folder or a wheel, looked up by name with `ast`.

sources = Sources(Path("vllm-0.33.0-….whl"))
home = sources.find("vllm.config", "VllmConfig")    # follows re-exports
members = sources.members(home)                     # methods and attributes, base classes included
"""

import ast
import functools
import importlib.util
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

PACKAGE = "vllm"
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


@dataclass(frozen=True, slots=True)
class Home:
    """The definition of a name and its module."""

    module: str
    node: Definition


class Sources:
    """The modules of one release. Raises FileNotFoundError if the path contains no vLLM."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._trees: dict[str, ast.Module | None] = {}
        self._lines: dict[str, list[str]] = {}
        self._members: dict[Home, dict[str, ast.AST]] = {}
        if self.tree(PACKAGE) is None:
            raise FileNotFoundError(f"{path} is neither a vLLM wheel nor a folder that contains {PACKAGE}/__init__.py")

    @classmethod
    @functools.cache
    def installed(cls) -> "Sources":
        """This environment's vLLM, found without importing it. Raises FileNotFoundError if there is none."""
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise FileNotFoundError("vLLM is not installed: pip install 'vllm-nld[gpu]' (or [cpu])")
        return cls(Path(spec.origin).parents[1])

    @functools.cached_property
    def wheel(self) -> zipfile.ZipFile | None:
        return zipfile.ZipFile(self.path) if zipfile.is_zipfile(self.path) else None

    def tree(self, module: str) -> ast.Module | None:
        """The parsed module or package; None if it doesn't exist."""
        if module not in self._trees:
            stem = module.replace(".", "/")
            texts = (self._read(f"{stem}.py"), self._read(f"{stem}/__init__.py"))
            text = next((text for text in texts if text is not None), None)
            self._trees[module] = None if text is None else ast.parse(text)
            self._lines[module] = re.split(r"\r?\n|\r", text or "")  # where ast ends lines
        return self._trees[module]

    def lines(self, module: str) -> list[str]:
        """The lines of a module or package, none of them if it doesn't exist."""
        self.tree(module)
        return self._lines[module]

    def _read(self, name: str) -> str | None:
        try:
            content = (self.path / name).read_bytes() if self.wheel is None else self.wheel.read(name)
        except (KeyError, OSError):
            return None
        return content.decode("utf-8")

    def find(self, module: str, name: str, visited: frozenset[tuple[str, str]] = frozenset()) -> Home | None:
        """The definition of a name in a module, following imports; None if there is none."""
        tree = self.tree(module)
        if tree is None or (module, name) in visited:
            return None
        visited |= {(module, name)}
        for node in statements(tree):
            if name in defined(node):
                return Home(module, node)  # type: ignore[arg-type]  # `defined` names nothing else
        for source, original in self._imports(module, tree, name):
            if (home := self.find(source, original, visited)) is not None:
                return home
        return None

    def _imports(self, module: str, tree: ast.Module, name: str) -> Iterator[tuple[str, str]]:
        """(module, name there) for every import that may provide the name."""
        for node in statements(tree):
            if not isinstance(node, ast.ImportFrom):
                continue
            source = node.module or ""
            if node.level:
                package = self._is_package(module)
                parents = module.split(".")[: None if package and node.level == 1 else package - node.level]
                source = ".".join((*parents, source)) if source else ".".join(parents)
            for alias in node.names:
                if alias.name == "*":
                    yield source, name
                elif (alias.asname or alias.name) == name:
                    yield source, alias.name

    def _is_package(self, module: str) -> bool:
        return self._read(f"{module.replace('.', '/')}/__init__.py") is not None

    def members(self, home: Home) -> dict[str, ast.AST]:
        """A class's methods and attributes by name, including inherited ones and those set in its methods."""
        if home not in self._members:
            self._members[home] = self._collect(home.module, home.node) if isinstance(home.node, ast.ClassDef) else {}
        return self._members[home]

    def _collect(self, module: str, node: ast.ClassDef) -> dict[str, ast.AST]:
        found: dict[str, ast.AST] = {}
        for base in reversed(node.bases):
            parent = self.find(module, ast.unparse(base).split("[")[0])
            found |= self.members(parent) if parent is not None and parent.node is not node else {}
        found |= {inner.attr: inner for inner in ast.walk(node) if on_self(inner) and isinstance(inner.ctx, ast.Store)}
        return found | {name: statement for statement in statements(node) for name in defined(statement)}


def statements(node: ast.Module | ast.ClassDef) -> Iterator[ast.stmt]:
    """The statements of a body and of its branches, but not of nested functions and classes."""
    todo: list[ast.AST] = list(node.body)
    while todo:
        statement = todo.pop(0)
        if isinstance(statement, ast.stmt):
            yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            todo += [child for child in ast.iter_child_nodes(statement)]


def defined(node: ast.stmt) -> list[str]:
    """The names that a statement defines. The signatures of an overloaded function do not define it."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [] if "overload" in map(ast.unparse, node.decorator_list) else [node.name]
    if isinstance(node, ast.AnnAssign):
        return [node.target.id] if isinstance(node.target, ast.Name) else []
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def on_self(node: ast.AST) -> TypeGuard[ast.Attribute]:
    """Whether this is self.x or super().x."""
    if not isinstance(node, ast.Attribute):
        return False
    owner = node.value.func if isinstance(node.value, ast.Call) else node.value
    return isinstance(owner, ast.Name) and owner.id == ("super" if isinstance(node.value, ast.Call) else "self")
