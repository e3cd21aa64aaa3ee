"""Compares seams and bodies between the tested release and another one, and describes what changed."""

import ast
from dataclasses import dataclass

from vllm_nld.contract import bodies
from vllm_nld.contract.seams import Seam, seams
from vllm_nld.contract.sources import Home, Sources

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Finding:
    """A seam and a description of how it broke; "" if it still holds. `diff`: of a body that changed."""

    seam: Seam
    problem: str
    diff: str = ""

    @property
    def holds(self) -> bool:
        return not self.problem


def examine(tested: Sources, candidate: Sources) -> list[Finding]:
    """Compare every seam and every body in the tested release with the candidate."""
    found = [Finding(seam, _problem(seam, tested, candidate)) for seam in seams(tested)]
    return found + [_read(name, set(digests.values()), tested, candidate) for name, digests in bodies.known().items()]


def _read(name: str, digests: set[str], tested: Sources, candidate: Sources) -> Finding:
    """Whether somebody has read a body as the candidate has it."""
    module, _, rest = name.rpartition(".")
    seam = Seam("body", module, rest)
    before, now = bodies.find(tested, name), bodies.find(candidate, name)
    if now is None:
        return Finding(seam, f"{module} defines no {rest}: find out what took its place")
    if now.digest in digests:
        return Finding(seam, "")
    diff = before.diff(now) if before is not None else "\n".join(now.lines)
    count = [sum(line.startswith(sign) for line in diff.splitlines()) for sign in "+-"]
    return Finding(seam, f"body changed (+{count[0]} -{count[1]} lines): read it", diff)


def _problem(seam: Seam, tested: Sources, candidate: Sources) -> str:
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
    """A method that we override must keep its parameters; one that we call may append parameters.

    An override with *args and **kwargs passes on what it does not name, so only the parameters that it names count.
    """
    if old == new or (seam.kind == "attribute" and new[: len(old)] == old):
        return ""
    if seam.named is not None and new[: len(seam.named)] == list(seam.named):
        return ""
    added, gone = [n for n in new if n not in old], [n for n in old if n not in new]
    changes = [f"no longer takes {', '.join(gone)}"] * bool(gone) + [f"now takes {', '.join(added)}"] * bool(added)
    return f"{seam.name}.{seam.member} " + (" and ".join(changes) or f"takes ({', '.join(new)}) in a different order")


def _call(seam: Seam, old: "Parameters", new: "Parameters") -> str:
    """The same call must still bind: keywords known, positions unchanged, no new required parameters."""
    missing = [keyword for keyword in seam.keywords if keyword in old.names and keyword not in new.names]
    missing += [name for name in old.names[: seam.positional] if name not in new.names[: seam.positional]]
    if missing:
        return f"{seam.name} no longer takes {', '.join(missing)} there"
    given = {*new.names[: seam.positional], *seam.keywords}
    wanted = [name for name in new.required if name not in given and name not in old.required]
    return f"{seam.name} now requires {', '.join(wanted)}" if wanted else ""


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a function or class."""

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
    """The parameters of a function, a class's __init__, or a dataclass (its fields)."""
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
