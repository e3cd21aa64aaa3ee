"""The side of a subject's own process: open it, run its checks one after another, and send each finding at once."""

import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from bench.gpu_check.record import OK, SKIPPED, Finding, Setting, Subject, described, judge

ENVIRONMENT = {
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # keeps the worker in this process, where it can be looked at
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
GPU_ENVIRONMENT = {"OMP_NUM_THREADS": "4"}  # several processes compute the reference on the host at a time


def work(setting: Setting, name: str, log: Path, pipe: Connection) -> None:
    """Run the subject of this name. Messages: (line,) when a check begins, (line, finding) when it has ended."""
    with log.open("w", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    for key, value in (ENVIRONMENT | (GPU_ENVIRONMENT if setting.gpu else {})).items():
        os.environ.setdefault(key, value)
    from bench.gpu_check.plan import subjects

    subject = next(subject for subject in subjects(setting) if subject.name == name)
    report(subject, setting, pipe)
    pipe.close()
    sys.stdout.flush()
    os._exit(0)  # everything has been sent: an engine that hangs or crashes while it ends has nothing to spoil


def report(subject: Subject, setting: Setting, pipe: Connection) -> None:
    """Send the subject's findings."""
    start, *lines = subject.lines()
    pipe.send((start,))
    opened = subject.open(setting)
    try:
        given = opened.__enter__()
    except BaseException as error:  # whatever it is, it is the finding; the process ends with it
        pipe.send((start, Finding("FAIL", described(error))))
        raise
    pipe.send((start, Finding(OK, getattr(given, "summary", "ready"))))
    for line, check in zip(lines, subject.checks, strict=True):
        pipe.send((line,))
        if check.gpu_only and not setting.gpu:
            pipe.send((line, Finding(SKIPPED, check.gpu_only)))
        else:
            pipe.send((line, judge(check.run, given)))
    # `opened` stays open: closing an engine takes seconds, and ending the process does the same.
