"""Process groups, as tests look at them from outside."""

import os

import psutil


def members(leader: int) -> list[psutil.Process]:
    """The processes of the group that `leader` leads."""
    return [process for process in psutil.process_iter() if group(process.pid) == leader]


def group(process: int) -> int | None:
    try:
        return os.getpgid(process)
    except ProcessLookupError:  # it ended meanwhile
        return None


def cpu_seconds(leader: int) -> float:
    """The CPU time that a group's processes have used."""
    times = [process.cpu_times() for process in members(leader)]
    return sum(spent.user + spent.system for spent in times)


def is_stopped(leader: int) -> bool:
    return all(process.status() == psutil.STATUS_STOPPED for process in members(leader))
