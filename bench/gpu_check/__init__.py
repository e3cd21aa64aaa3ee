"""The first hour on a GPU: one command, most important findings first, a line each.

    make gpu-check                                  # or: python -m bench gpu_check
    python -m bench gpu_check --only nano           # a group, or a subject, of --list
    python -m bench gpu_check --options '{"compilation_config": {"mode": 0}}'      # engine options, if engines fail

OK is as it should be, DIFF is to be read, FAIL is wrong, a figure has nothing to be compared with. Every finding is
printed and saved as it arrives, in a JSON line and in a Markdown report to paste into an issue, so a run that is cut
off loses nothing. What measures no time ends after 60 % of the minutes at the latest, and leaves the rest to the lines
about cost. Without a GPU every line runs in its CPU form, or says why it cannot: that shows that the tool works.
It needs a checkout with the `dev` extra, because it shares its cases with the tests.

    plan.py       what is looked at, in order       record.py     findings, checks, subjects
    conduct.py    processes, limits, budget         process.py    their own side
"""

import argparse
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

GROUPS = ("machine", "kernels", "nano", "shape", "cost")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", metavar="WHAT", help=f"groups ({', '.join(GROUPS)}) or names of --list")
    parser.add_argument("--list", action="store_true", help="list the lines and why each is there, and end")
    parser.add_argument("--minutes", type=float, help="stop after this long (default: 10; on a CPU 20)")
    parser.add_argument("--jobs", type=int, help="untimed processes side by side (default: 6; on a CPU 1)")
    parser.add_argument(
        "--options", type=json.loads, default={}, metavar="JSON", help="engine options, for all engines"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check"), help="folder for the report and the logs")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the plan; returns what was found, by line."""
    import torch

    from bench.gpu_check.conduct import Conductor
    from bench.gpu_check.plan import plan
    from bench.gpu_check.record import Finding, Setting
    from bench.gpu_check.report import NO_GPU, headline, markdown
    from vllm_nld.tools.provenance import describe, provenance

    setting = Setting(torch.cuda.is_available(), options.quick, options.options)
    items = chosen(plan(setting), options.only)
    if options.list:
        print(listing(items))
        return {}
    options.out.mkdir(parents=True, exist_ok=True)
    lines, report, source = options.out / "findings.jsonl", options.out / "report.md", provenance()
    lines.write_text(json.dumps({"provenance": source}) + "\n", encoding="utf-8")
    lock, begun = Lock(), time.monotonic()

    def say(line: str, finding: Finding) -> None:
        row = {"line": line, "verdict": finding.verdict, "text": finding.text, "data": finding.data}
        row["seconds"] = round(time.monotonic() - begun, 1)
        with lock:
            print(f"{finding.verdict:<7} {line}: {finding.text}", flush=True)
            with lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, default=str) + "\n")
            report.write_text(markdown(items, conductor.found, setting, describe(source), command), encoding="utf-8")

    command = f"python -m bench gpu_check{' --quick' if options.quick else ''}"
    minutes = options.minutes or (10 if setting.gpu else 20)
    jobs = options.jobs or (6 if setting.gpu else 1)
    if not setting.gpu:
        print(f"{NO_GPU} It takes up to {minutes:g} minutes.", flush=True)
    conductor = Conductor(setting, options.out, say, begun + 60 * minutes, jobs)
    conductor.run(items)
    print(f"\n{headline(conductor.found)} in {time.monotonic() - begun:.0f} s: {report}", flush=True)
    found = {
        line: {"verdict": one.verdict, "text": one.text, "data": plain(one.data)}
        for line, one in conductor.found.items()
    }
    today = datetime.now(UTC).date().isoformat()
    return {"provenance": source, "date": today, "gpu": setting.gpu, "findings": found}


def plain(data: Any) -> Any:
    """Data for the stored result: figures, without answers token by token."""
    return None if isinstance(data, dict) and "tokens" in data and isinstance(data["tokens"], list) else data


def chosen(items: Sequence[Any], only: Sequence[str] | None) -> list[Any]:
    """The items of these groups or names. Raises SystemExit for a word that is neither."""
    for word in only or ():
        if not any(word in (item.group, item.name) for item in items):
            raise SystemExit(f"--only {word!r} is no group and no name of --list")
    return [item for item in items if not only or item.group in only or item.name in only]


def listing(items: Sequence[Any]) -> str:
    """Every line, by group, with the reason for it."""
    from bench.gpu_check.record import Subject

    rows = []
    for group in dict.fromkeys(item.group for item in items):
        rows.append(group)
        for item in items:
            if item.group == group and isinstance(item, Subject):
                rows += [f"  {item.name}", *(f"    {check.name}: {check.why}" for check in item.checks)]
            elif item.group == group:
                rows.append(f"  {item.name}: {item.why}")
    return "\n".join(rows)
