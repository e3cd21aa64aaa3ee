"""`vllm-nld adapter evaluate`: acceptance without an adapter, with the shipped one and with a new one.

    vllm-nld adapter evaluate MODEL --adapter runs/adapter/adapter --prompts heldout.jsonl

The exit status is 1 if the new adapter is worse than the shipped one (or than none, if none is shipped) by more than
the margin, over all prompts or in any category, and the 95 % interval of the change is below zero.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_nld.adapter.train import ZERO, add_data_arguments, conversations_of, folder_of, model_of, on_device
from vllm_nld.model.adapter import RELEASED

if TYPE_CHECKING:
    from vllm_nld.adapter.figures import Run, Verdict

NONE, SHIPPED, NEW = "none", "shipped", "new"
POSITIONS = (1, 2, 4, 8, 16, 31)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vllm-nld adapter evaluate`."""
    add_data_arguments(parser)
    parser.add_argument("--adapter", type=Path, required=True, help="the new adapter's folder")
    parser.add_argument("--margin", type=float, default=0.02, help="acceptable loss of acceptance (default: 0.02)")
    parser.add_argument("--out", type=Path, help="folder that keeps generated answers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures")


def run(options: argparse.Namespace) -> int:
    """Print the comparison. Returns the exit status."""
    try:
        runs = measured(options)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"vllm-nld adapter evaluate: {error}", file=sys.stderr)
        return 2
    from vllm_nld.adapter.figures import verdict

    base = SHIPPED if SHIPPED in runs else NONE
    found = verdict(runs[base], runs[NEW], options.margin)
    print(report(runs, base, found, options.margin))
    if options.json:
        options.json.write_text(json.dumps(plain(runs, base, found), indent=1) + "\n", encoding="utf-8")
    return 0 if found.good else 1


def measured(options: argparse.Namespace) -> "dict[str, Run]":
    """A run for each adapter. Raises ValueError, CheckpointError among them, if one doesn't fit the model."""
    import torch

    from vllm_nld.adapter.trainer import Settings, measure
    from vllm_nld.model.checkpoint import ADAPTER_DIR

    if not 0 <= options.margin < 1:
        raise ValueError(f"--margin must lie in [0, 1), not {options.margin}")
    folder = folder_of(options.model)
    settings = Settings(group=options.group, block_length=options.block_length)
    with tempfile.TemporaryDirectory() as temporary, on_device(options) as (device, dtype), torch.no_grad():
        answers = (options.out or Path(temporary)) / "answers.jsonl"
        conversations = conversations_of(options, folder, options.prompts, answers)
        options.start, options.rank, options.alpha, options.targets = ZERO, 1, 1.0, RELEASED
        model = model_of(folder, options, device, dtype)
        runs = {NONE: measure(model, conversations, False, settings)}
        adapters = {SHIPPED: folder / ADAPTER_DIR, NEW: options.adapter}
        for name, adapter in adapters.items():
            if name == NEW or adapter.is_dir():
                model.load_adapter(adapter)
                model.to(device)
                runs[name] = measure(model, conversations, True, settings)
    return runs


def report(runs: "Mapping[str, Run]", base: str, found: "Verdict", margin: float) -> str:
    """The verdict first, then the runs, then the changes by category."""
    overall = found.changes["all"]
    head = f"Against {base}: acceptance length {overall.change:+.1%} [{overall.low:+.1%}, {overall.high:+.1%}]. "
    if found.good:
        head += f"Nowhere certainly worse by more than {margin:.0%}."
    else:
        head += f"Not to be used: worse by more than {margin:.0%} in {', '.join(found.worse)}."
    if found.unclear:
        head += f" Too few prompts to tell: {', '.join(found.unclear)}."
    places = [place for place in POSITIONS if place <= max(len(run.by_position) for run in runs.values())]
    lines = [["adapter", "AL", "95 % interval", "TPF", *(f"accepted to {place}" for place in places)]]
    for name, run in runs.items():
        low, high = run.interval
        shares = [f"{run.by_position[place - 1]:.0%}" if place <= len(run.by_position) else "–" for place in places]
        lines.append([name, f"{run.acceptance_length:.2f}", f"{low:.2f}–{high:.2f}", f"{run.tpf:.2f}", *shares])
    changes = [["category", "prompts", base, NEW, "change", "95 % interval"]]
    for category, change in found.changes.items():
        old, new = (runs[name].of(None if category == "all" else category) for name in (base, NEW))
        values = [f"{old.acceptance_length:.2f}", f"{new.acceptance_length:.2f}", f"{change.change:+.1%}"]
        changes.append([category, str(len(old.traces)), *values, f"{change.low:+.1%} to {change.high:+.1%}"])
    return "\n\n".join([head, columns(lines), columns(changes)])


def columns(lines: list[list[str]]) -> str:
    """Lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(row.rstrip() for row in rows)


def plain(runs: "Mapping[str, Run]", base: str, found: "Verdict") -> dict[str, Any]:
    """All figures as plain data."""
    figures = {
        name: {
            "acceptance_length": run.acceptance_length,
            "interval": run.interval,
            "tpf": run.tpf,
            "by_position": run.by_position,
            "by_category": {
                category: {"acceptance_length": part.acceptance_length, "interval": part.interval}
                for category in dict.fromkeys(run.categories)
                for part in (run.of(category),)
            },
        }
        for name, run in runs.items()
    }
    changes = {name: [one.change, one.low, one.high] for name, one in found.changes.items()}
    return {
        "runs": figures,
        "against": base,
        "changes": changes,
        "worse": list(found.worse),
        "unclear": list(found.unclear),
        "good": found.good,
    }
