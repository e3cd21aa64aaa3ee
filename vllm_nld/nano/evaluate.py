"""`vllm-nld nano eval`: exact match, acceptance length and TPF on held-out prompts, from the reference loops in fp32.

The figures table of the model card is this command's output (`--card` writes it, `--check` compares), so that the
card never says what was not measured.
"""

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_nld.nano import checkpoint_path, heldout
from vllm_nld.nano.card import card_table, fill_card

if TYPE_CHECKING:
    from vllm_nld.nano.measure import Figures
    from vllm_nld.reference import ReferenceModel


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured, and how."""

    command: str  # `vllm-nld COMMAND eval`
    asked: Sequence[Any]  # held-out prompts with their expected answers
    model: "type[ReferenceModel]"
    runs: Sequence[tuple[str, str, bool]]  # see measure.RUNS
    show: Callable[..., Any]  # see measure.measure


def add_arguments(parser: argparse.ArgumentParser, checkpoint: Path | None = None) -> None:
    """Options of `vllm-nld nano eval`."""
    parser.add_argument(
        "--checkpoint", type=Path, default=checkpoint or checkpoint_path(), help="another folder in the same layout"
    )
    parser.add_argument("--limit", type=int, help="this many prompts only, the same ones every time")
    parser.add_argument("--quick", action="store_true", help="same as --limit 22")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--card", action="store_true", help="write the table into the checkpoint's README.md")
    parser.add_argument("--check", action="store_true", help="exit 1 if README.md states another table")


def choose(prompts: Sequence[Any], limit: int | None) -> Sequence[Any]:
    """All prompts, or the same few of them every time."""
    return prompts if limit is None else random.Random(0).sample(prompts, min(limit, len(prompts)))


def table(figures: dict[str, "Figures"], prompts: int) -> str:
    """The figures as two markdown tables."""
    lines = [
        f"Greedy, fp32, block length 32, {prompts} held-out prompts.",
        "",
        "| mode | exact match | acceptance length | TPF | NFE | tokens |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, run in figures.items():
        length = "–" if run.acceptance_length is None else f"{run.acceptance_length:.2f}"
        lines.append(f"| {name} | {run.exact:.1%} | {length} | {run.tpf:.2f} | {run.nfe} | {run.tokens} |")
    names = list(figures)
    lines += ["", f"| exact match by category | {' | '.join(names)} |", "| --- " * (len(names) + 1) + "|"]
    for category, right in figures[names[0]].right.items():
        cells = [f"{sum(figures[name].right[category])}/{len(right)}" for name in names]
        lines.append(f"| {category} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def run(args: argparse.Namespace, subject: Subject | None = None) -> int:
    """Measure, print, and write or compare what was asked for. Returns the exit status.

    subject: None: nano.
    """
    import torch
    from transformers import AutoTokenizer

    from vllm_nld.model.configs import register_configs
    from vllm_nld.nano.measure import RUNS, measure, show
    from vllm_nld.reference import ReferenceModel

    subject = subject or Subject("nano", heldout(), ReferenceModel, RUNS, show)
    chosen = choose(subject.asked, 22 if args.quick else args.limit)
    if (args.card or args.check) and len(chosen) < len(subject.asked):
        print("--card and --check need all held-out prompts: leave out --quick and --limit")
        return 2
    if not (args.checkpoint / "config.json").exists():
        print(f"{args.checkpoint} holds no checkpoint: run `vllm-nld {subject.command} train`, or name a --checkpoint")
        return 1
    register_configs()  # AutoTokenizer reads config.json too
    torch.set_num_threads(1)  # a model this small is slower on several
    model, tokenizer = subject.model.from_pretrained(args.checkpoint), AutoTokenizer.from_pretrained(args.checkpoint)
    figures = measure(model, tokenizer, chosen, subject.runs, subject.show)
    text = table(figures, len(chosen))
    print(text, end="")
    if args.json:
        content = {"prompts": len(chosen), "modes": {name: run.as_dict() for name, run in figures.items()}}
        args.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    file = args.checkpoint / "README.md"
    if args.card:
        fill_card(file, text)
    if args.check and card_table(file.read_text(encoding="utf-8")) != text:
        print(f"{file} states other figures: run `vllm-nld {subject.command} eval --card`")
        return 1
    return 0


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(cli)
    raise SystemExit(run(cli.parse_args()))
