"""Samples saved to disk as they are measured, so that an interrupted benchmark resumes where it stopped.

    store = Store(Path("runs/bench/modes.jsonl"), {"revision": …, "quick": False})
    store.sample(("round 0", "linear", 8), measure)     # measured once, then read from the file

One line per sample. A file with a different fingerprint (revision, flags or machine) is overwritten.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


class Store:
    """A JSONL file: the fingerprint, then the key and value of each sample."""

    def __init__(self, path: Path, fingerprint: dict[str, Any], fresh: bool = False) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        head = json.dumps({"fingerprint": fingerprint}, sort_keys=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() and not fresh else []
        if lines and lines[0] == head:
            for line in lines[1:]:
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:  # an incomplete line from an interrupted run
                    continue
                self.values[row["key"]] = row["value"]
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [json.dumps({"key": key, "value": value}) for key, value in self.values.items()]
        path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")

    def sample(self, key: Iterable[Any], measure: Callable[[], Any]) -> Any:
        """The stored value of a key, measured and stored if missing."""
        name = " / ".join(map(str, key))
        if name not in self.values:
            self.values[name] = measure()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": name, "value": self.values[name]}) + "\n")
        return self.values[name]
