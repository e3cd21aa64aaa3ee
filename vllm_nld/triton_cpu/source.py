"""Digests of Triton kernels, read from source files without importing them.

What a kernel does depends on its own text and on everything it calls, so the digest covers the kernel and, recursively,
the module-level functions and constants that it names, across modules of the same package.

    digest("vllm.v1.worker.gpu.block_table", "_gather_block_tables_kernel")  # "61d7…", None if there is no such kernel
"""

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Module:
    """The top level of one source file."""

    definitions: dict[str, ast.stmt]  # functions and assignments
    imports: dict[str, tuple[str, str]]  # local name -> (module, name there)
    text: str


def digest(module: str, kernel: str) -> str | None:
    """The first 16 hex digits of the SHA-256 of the kernel's source and all it uses; None if it doesn't exist."""
    found = _load(module)
    if found is None or kernel not in found.definitions:
        return None
    parts = {}
    todo = [(module, kernel)]
    while todo:
        key = todo.pop()
        if key in parts:
            continue
        home = _load(key[0])
        if home is None or key[1] not in home.definitions:
            continue
        node = home.definitions[key[1]]
        parts[key] = ast.get_source_segment(home.text, node) or ""
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        todo += [home.imports.get(name, (key[0], name)) for name in names]
    text = "\n".join(f"{'.'.join(key)}\n{parts[key]}" for key in sorted(parts))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def launched_kernels(package: str) -> Iterator[tuple[str, str]]:
    """(module, name) of every Triton function under `package` that its own module launches as `name[grid](…)`."""
    root = _path(package)
    if root is None:
        return
    for path in sorted(root.rglob("*.py")):
        if "triton.jit" not in path.read_text(encoding="utf-8"):
            continue
        module = ".".join((package, *path.relative_to(root).with_suffix("").parts))
        found = _load(module)
        if found is None:
            continue
        launches = {
            node.func.value.id
            for node in ast.walk(ast.parse(found.text))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Subscript)
            and isinstance(node.func.value, ast.Name)
        }
        yield from ((module, name) for name in sorted(launches) if _is_jitted(found.definitions.get(name)))


def _is_jitted(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(d) for d in node.decorator_list)


@functools.cache
def _load(module: str) -> Module | None:
    path = _path(module)
    if path is None or path.is_dir():
        return None
    text = path.read_text(encoding="utf-8")
    definitions: dict[str, ast.stmt] = {}
    imports: dict[str, tuple[str, str]] = {}
    package = module.split(".")[0]
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Assign):
            definitions |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package:
            imports |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    return Module(definitions, imports, text)


def _path(module: str) -> Path | None:
    """The file of a module or the folder of a package, found without importing anything."""
    root, *parts = module.split(".")
    spec = importlib.util.find_spec(root)
    if spec is None or not spec.submodule_search_locations:
        return None
    base = Path(spec.submodule_search_locations[0]).joinpath(*parts)
    if base.with_suffix(".py").is_file():
        return base.with_suffix(".py")
    return base if base.is_dir() else None
