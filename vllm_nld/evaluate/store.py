"""Samples saved to disk as they are measured, so that what is interrupted goes on where it stopped.

    store = Store(Path("runs/bench/modes.jsonl"), {"revision": …, "quick": False})
    store.sample(("round 0", "linear", 8), measure)     # measured once, then read from the file

One line per sample. A file with a different fingerprint (revision, flags or machine) is overwritten, or an error with
`keep`.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


class Store:
    """A JSONL file: the fingerprint, then the key and value of each sample."""

    def __init__(self, path: Path, fingerprint: dict[str, Any], fresh: bool = False, keep: bool = False) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        head = json.dumps({"fingerprint": fingerprint}, sort_keys=True)
        theirs, stored = read(path) if path.exists() and not fresh else (None, {})
        ours = json.loads(head)["fingerprint"]
        if keep and theirs is not None and theirs != ours:
            raise ValueError(f"{path} holds the results of something else: {differences(theirs, ours)}")
        if theirs == ours:
            self.values = stored
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [json.dumps({"key": key, "value": value}) for key, value in self.values.items()]
        path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")

    def sample(self, key: Iterable[Any], measure: Callable[[], Any]) -> Any:
        """The stored value of a key, measured and stored if missing."""
        name = " / ".join(map(str, key))
        if name not in self.values:
            self.put(key, measure())
        return self.values[name]

    def get(self, key: Iterable[Any]) -> Any:
        """The stored value of a key; None if it is missing."""
        return self.values.get(" / ".join(map(str, key)))

    def put(self, key: Iterable[Any], value: Any) -> None:
        """Store a value."""
        name = " / ".join(map(str, key))
        self.values[name] = value
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": name, "value": value}) + "\n")


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A file's fingerprint and its values by key. Raises OSError if there is no file."""
    head, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
    try:
        fingerprint = dict(json.loads(head)["fingerprint"])
    except (ValueError, TypeError, KeyError):
        return {}, {}
    values = {}
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # an incomplete line from an interrupted run
            continue
        values[row["key"]] = row["value"]
    return fingerprint, values


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """The parts of two fingerprints that differ."""
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return ", ".join(f"{name} {theirs.get(name)} instead of {ours.get(name)}" for name in names)
