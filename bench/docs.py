"""The generated parts of docs/: settings, metrics, alerts, and the benchmarks that the README leaves out.

Each part stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; `python -m bench.readme` writes them.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # vLLM requires it; it ships no types

from bench import alarms, runners
from bench.gpu_check.figures import section
from bench.prometheus import RULE_FILES, RULES
from bench.results import load
from vllm_nld.evaluate.spread import table
from vllm_nld.metrics.definitions import METRICS
from vllm_nld.serving.settings import Settings

DOCS = Path(__file__).parents[1] / "docs"
RUNBOOK = "../deploy/runbook.md"


def runners_table() -> str:
    """The stored result of `bench runners`; empty if there is none."""
    if not (result := load("runners")):
        return ""
    method = (
        "vLLM's model runners on a 2-core CPU, AR, the shipped checkpoint (`python -m bench runners`; medians,\n"
        "with their range for speeds and their 95 % confidence interval for ratios).\n"
        "V1 runs with vLLM's own C++ kernels, as it does without this plugin's Triton backend:"
    )
    return f"{method}\n\n{runners.table(result)}"


def alarms_summary() -> str:
    """The stored result of `bench alarms`; empty if there is none."""
    return alarms.summary(result) if (result := load("alarms")) else ""


def settings_table() -> str:
    """Every setting, from the docstring of `Settings`."""
    described = dict(re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", Settings.__doc__ or "", re.MULTILINE))
    rows = []
    for field in fields(Settings):
        text = re.sub(r"\s+", " ", described[field.name]).rstrip(".")
        default = "–" if field.default is None else f"`{shown(field.default)}`"
        rows.append(
            [f"`{field.name}`", default, text.replace("None:", "not set:").replace(", see `serving.modes`", "")]
        )
    return table(["`--additional-config '{\"nld\": {...}}'`", "default", "meaning"], rows)


def shown(value: Any) -> str:
    """A default as it is written in JSON."""
    return f'"{value}"' if isinstance(value, str) else f"{value:g}"


def metrics_table() -> str:
    """Every metric of ours."""
    rows = [
        [f"`{metric.sample_names[0].removesuffix('_bucket')}`", metric.kind, names(metric.labels), metric.help]
        for metric in METRICS
    ]
    return table(["metric", "kind", "labels", "meaning"], rows)


def names(labels: Iterable[str]) -> str:
    return ", ".join(f"`{label}`" for label in labels) or "–"


def alerts_table() -> str:
    """Every alert, with a link to its section of the runbook."""
    groups = [group for name in RULE_FILES for group in yaml.safe_load((RULES / name).read_text())["groups"]]
    rows = [
        [f"[{rule['alert']}]({RUNBOOK}#{rule['alert'].lower()})", rule["labels"]["severity"], summary(rule)]
        for group in groups
        for rule in group["rules"]
        if "alert" in rule
    ]
    return table(["alert", "severity", "says"], rows)


def summary(rule: dict[str, Any]) -> str:
    """An alert's summary with the names of its labels instead of their values."""
    text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"*\1*", rule["annotations"]["summary"])
    return re.sub(r"\{\{ \$value[^}]*\}\}", "*value*", text)


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "benchmarks.md": {"runners": runners_table, "gpus": section},
    "evaluate.md": {"alarms": alarms_summary},
    "settings.md": {"settings": settings_table},
    "watch.md": {"metrics": metrics_table, "alerts": alerts_table},
}


def fill(text: str, name: str, part: str) -> str:
    """The text with the part of this name replaced. Raises ValueError if its markers are missing."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    before, rest = text.split(begin)
    return before + begin + part + "\n" + end + rest.split(end, 1)[1]


def pages() -> dict[Path, str]:
    """The expected content of each page."""
    texts = {}
    for page, parts in PARTS.items():
        text = (DOCS / page).read_text(encoding="utf-8")
        for name, part in parts.items():
            text = fill(text, name, part())
        texts[DOCS / page] = text
    return texts
