"""The functions of vLLM whose behavior we rely on: each calls us, or does before and after us what we count on.

A name can stay and mean something else, so `bodies.json` holds a digest of each body for every release in which
somebody read it. A body with another digest has to be read. Comments, docstrings and blank lines make no difference.

    body = find(sources, "vllm.v1.core.sched.scheduler.Scheduler.schedule")
    record("0.33.0", sources)     # "I have read what changed"
"""

import ast
import difflib
import hashlib
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

from vllm_nld.contract.sources import Sources, defined, statements

TABLE = Path(__file__).with_name("bodies.json")  # name -> release -> digest


@dataclass(frozen=True, slots=True)
class Body:
    """The source of a function, class or constant without what does not matter."""

    lines: tuple[str, ...]

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()[:16]

    def diff(self, other: "Body") -> str:
        """What became of this body in another release, as a unified diff."""
        return "\n".join(list(difflib.unified_diff(self.lines, other.lines, lineterm="", n=2))[2:])


def known() -> dict[str, dict[str, str]]:
    """The table: the digest of each body by release."""
    table: dict[str, dict[str, str]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


def find(sources: Sources, name: str) -> Body | None:
    """A body by its full name, in the very module and class that the name says; None if it is not there."""
    module, _, rest = name.rpartition(".")
    path = [rest]
    while sources.tree(module) is None and "." in module:
        module, _, part = module.rpartition(".")
        path.insert(0, part)
    node: ast.Module | ast.stmt | None = sources.tree(module)
    for part in path:
        if not isinstance(node, ast.Module | ast.ClassDef):
            return None
        node = next((one for one in statements(node) if part in defined(one)), None)
    return Body(_lines(sources.lines(module), node)) if isinstance(node, ast.stmt) else None


def _lines(source: list[str], node: ast.stmt) -> tuple[str, ...]:
    lines = source[node.lineno - 1 : node.end_lineno]
    lines[-1] = lines[-1].encode()[: node.end_col_offset].decode()  # without a comment behind it; ast counts bytes
    first = node.body[0] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        del lines[first.lineno - node.lineno : (first.end_lineno or first.lineno) - node.lineno + 1]
    kept = [line.rstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return tuple(textwrap.dedent("\n".join(kept)).splitlines())


def record(release: str, sources: Sources) -> None:
    """Add a release's digests to the table."""
    table = known()
    for name, digests in table.items():
        if (body := find(sources, name)) is not None:
            digests[release] = body.digest
    TABLE.write_text(json.dumps(dict(sorted(table.items())), indent=2) + "\n", encoding="utf-8")
