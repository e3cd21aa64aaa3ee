"""The judge's memory on disk: what it decided is still known after judge and routers have ended at once.

memory = Memory(folder)
memory.write(state)
memory.read()                # State(...), in another process; None if there is none

The file holds the latest state only. A state of an earlier moment, such as one on a node that the judge had left, does
no harm: the judge takes the one that is further on (`rollout.later`), and a state of another run says nothing.
"""

import json
import logging
import tempfile
from dataclasses import asdict
from pathlib import Path

import ray
from ray import serve

from nld_serve.rollout import Phase, State

logger = logging.getLogger("ray.serve")


class Memory:
    """A file in a folder."""

    def __init__(self, folder: Path, name: str = "canary") -> None:
        self.file = folder / f"{name}.json"

    def read(self) -> State | None:
        """What was written last; None if nothing was, or if it can't be read."""
        try:
            fields = json.loads(self.file.read_text())
            return State(**fields | {"phase": Phase(fields["phase"])})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as reason:
            logger.warning("The canary's state in %s can't be read: %r", self.file, reason)
            return None

    def write(self, state: State) -> None:
        """Replace the file at once. If that fails, routers and judge still remind each other."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.file.parent) as folder:  # which ends with what is in it
                file = Path(folder, self.file.name)
                file.write_text(json.dumps(asdict(state)))
                file.replace(self.file)
        except OSError as reason:
            logger.warning("The canary's state can't be kept in %s: %r", self.file, reason)


def of_application(folder: str) -> Memory:
    """In this folder, which outlives the cluster; without one, among the cluster's own files on the judge's node."""
    context = ray.get_runtime_context()
    session = Path(context.get_temp_dir(), context.get_session_name())
    return Memory(Path(folder) if folder else session, f"nld-canary-{serve.get_replica_context().app_name}")
