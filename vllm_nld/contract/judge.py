"""Whether a seam is in another release as it is in the tested one, and if not, what has become of it."""

import ast
from dataclasses import dataclass

from vllm_nld.contract.seams import Seam, seams
from vllm_nld.contract.sources import Home, Sources

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Finding:
    """A seam, and in words why it does not hold; "" where it holds."""

    seam: Seam
    trouble: str

    @property
    def holds(self) -> bool:
        return not self.trouble


def examine(tested: Sources, candidate: Sources) -> list[Finding]:
    """Compare every seam of the tested release with another one."""
    return [Finding(seam, _trouble(seam, tested, candidate)) for seam in seams(tested)]


def _trouble(seam: Seam, tested: Sources, candidate: Sources) -> str:
    before, now = tested.find(seam.module, seam.name), candidate.find(seam.module, seam.name)
    if now is None:
        is_module = candidate.tree(f"{seam.module}.{seam.name}") is not None
        return "" if is_module and before is None else f"{seam.module} has no {seam.name}"
    if seam.kind == "call":
        return _call(seam, _parameters(tested, before), _parameters(candidate, now))
    if not seam.member:
        return ""
    old = tested.members(before).get(seam.member) if before else None
    new = candidate.members(now).get(seam.member)
    if new is None:
        return f"{seam.name} has no {seam.member}"
    if isinstance(old, Function) and isinstance(new, Function):
        return _signature(seam, names(old), names(new))
    return ""


def _signature(seam: Seam, old: list[str], new: list[str]) -> str:
    """An overriding method must take what it is called with; one that we call may take more, at the end."""
    if old == new or (seam.kind == "attribute" and new[: len(old)] == old):
        return ""
    added, gone = [n for n in new if n not in old], [n for n in old if n not in new]
    changes = [f"no longer takes {', '.join(gone)}"] * bool(gone) + [f"takes {', '.join(added)} too"] * bool(added)
    return f"{seam.name}.{seam.member} " + (" and ".join(changes) or f"takes ({', '.join(new)}), another order")


def _call(seam: Seam, old: "Parameters", new: "Parameters") -> str:
    """The same call must still bind: its keywords known, its positions unmoved, nothing more required."""
    missing = [keyword for keyword in seam.keywords if keyword in old.names and keyword not in new.names]
    missing += [name for name in old.names[: seam.positional] if name not in new.names[: seam.positional]]
    if missing:
        return f"{seam.name} takes no {', '.join(missing)} there"
    given = {*new.names[: seam.positional], *seam.keywords}
    wanted = [name for name in new.required if name not in given and name not in old.required]
    return f"{seam.name} requires {', '.join(wanted)} too" if wanted else ""


@dataclass(frozen=True, slots=True)
class Parameters:
    """What can be passed to a function or class."""

    names: list[str]
    required: list[str]


NOTHING = Parameters([], [])


def names(function: Function) -> list[str]:
    """Parameter names in order."""
    arguments = function.args
    return [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]


def _of_function(function: Function) -> Parameters:
    arguments = function.args
    positional = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    required = positional[: len(positional) - len(arguments.defaults)]
    required += [a.arg for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is None]
    return Parameters(names(function), required)


def _parameters(sources: Sources, home: Home | None) -> Parameters:
    """Of a function, of a class's __init__, or of a dataclass, whose fields are parameters."""
    if home is None:
        return NOTHING
    if isinstance(home.node, Function):
        return _of_function(home.node)
    members = sources.members(home)
    init = members.get("__init__")
    if isinstance(init, Function):
        own = _of_function(init)
        return Parameters(own.names[1:], own.required[1:])
    fields = {name: node for name, node in members.items() if isinstance(node, ast.AnnAssign)}
    return Parameters(list(fields), [name for name, node in fields.items() if node.value is None])
