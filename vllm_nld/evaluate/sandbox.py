"""Runs a check's command on an answer, in a bubblewrap sandbox: no network, nothing writable but its own folder.

    passed = run({"command": "python -m pytest -q", "files": {"test_it.py": "..."}, "answer": "it.py"}, answer)

Home folders (but for this Python's) and /tmp are empty inside, other processes invisible, the environment bare; time,
memory and file sizes are limited. An answer is code of unknown origin: commands run only if they were asked for.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_nld.evaluate.checks import COMMAND, fenced

SECONDS = 10.0
LIMITS = "ulimit -v 2097152 && ulimit -f 65536 && ulimit -c 0"  # KiB of memory, blocks of a file, of a core dump
PROGRAM, WORK = "bwrap", "/tmp/work"


def refusal() -> str:
    """Why commands can't be run in a sandbox here; empty if they can."""
    if shutil.which(PROGRAM) is None:
        return "commands need bubblewrap: apt-get install bubblewrap, or leave --run-commands out"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(wrapped("true", Path(folder)), capture_output=True, text=True)
    if done.returncode:
        return f"bubblewrap can't make a sandbox here, so no command is run: {done.stderr.strip()[:200]}"
    return ""


def wrapped(command: str, folder: Path) -> list[str]:
    """The arguments that run a shell command in the sandbox, with this Python first on the path."""
    binds = [item for path in python_folders() for item in ("--ro-bind", path, path)]
    return [
        *(PROGRAM, "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"),
        *("--tmpfs", "/tmp", "--tmpfs", "/home", "--tmpfs", "/root", *binds),
        *("--bind", str(folder), WORK, "--chdir", WORK),
        *("--unshare-all", "--die-with-parent", "--new-session", "--clearenv"),
        *("--setenv", "PATH", f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"),
        *("--setenv", "HOME", WORK, "--setenv", "PYTHONDONTWRITEBYTECODE", "1"),
        *("--", "/bin/sh", "-c", f"{LIMITS} && {command}"),
    ]


def python_folders() -> list[str]:
    """Where this Python lives, which may be below a folder that is hidden."""
    return list(dict.fromkeys(str(Path(prefix).resolve()) for prefix in (sys.base_prefix, sys.prefix)))


def run(check: Mapping[str, Any], answer: str) -> bool:
    """Whether the command succeeds on this answer; a time-out is a failure.

    The answer's last fenced block, or all of it, is the file `answer` (answer.py) beside the check's files.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {check.get("answer", "answer.py"): fenced(answer), **check.get("files", {})}
        for file, text in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text, encoding="utf-8")
        try:
            done = subprocess.run(
                wrapped(check[COMMAND], folder),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=check.get("seconds", SECONDS),
            )
        except subprocess.TimeoutExpired:  # bubblewrap dies, and its processes with it
            return False
        return done.returncode == 0
