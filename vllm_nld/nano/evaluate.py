"""`vllm-nld nano eval`: exact match, acceptance length and TPF on held-out prompts, from the reference loops in fp32.

The figures table of the model card is this command's output (`--card` writes it, `--check` compares), so that the
card never says what was not measured.
"""

import argparse
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_nld.nano import Prompt, checkpoint_path, heldout
from vllm_nld.nano.card import BEGIN, END

if TYPE_CHECKING:
    from vllm_nld.nano.measure import Figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vllm-nld nano eval`."""
    parser.add_argument("--checkpoint", type=Path, default=checkpoint_path(), help="another folder in the same layout")
    parser.add_argument("--limit", type=int, help="this many prompts only, drawn over the categories")
    parser.add_argument("--quick", action="store_true", help="same as --limit 22")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--card", action="store_true", help="write the table into the checkpoint's README.md")
    parser.add_argument("--check", action="store_true", help="exit 1 if README.md states another table")


def choose(prompts: list[Prompt], limit: int | None) -> list[Prompt]:
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


def card_table(card: str) -> str:
    """The figures between the card's markers. Raises ValueError where it has none."""
    if BEGIN not in card or END not in card:
        raise ValueError(f"the card has no figures: it must hold the lines {BEGIN.strip()!r} and {END.strip()!r}")
    return card.split(BEGIN)[1].split(END)[0].strip("\n") + "\n"


def run(args: argparse.Namespace) -> int:
    """Measure, print, and write or compare what was asked for. Returns the exit status."""
    import torch
    from transformers import AutoTokenizer

    from vllm_nld.model.configs import register_configs
    from vllm_nld.nano.measure import measure
    from vllm_nld.reference import ReferenceModel

    prompts = choose(heldout(), 22 if args.quick else args.limit)
    if (args.card or args.check) and len(prompts) < len(heldout()):
        print("--card and --check need all held-out prompts: leave out --quick and --limit")
        return 2
    register_configs()  # AutoTokenizer reads config.json too
    torch.set_num_threads(1)  # a model this small is slower on several
    model = ReferenceModel.from_pretrained(args.checkpoint)
    figures = measure(model, AutoTokenizer.from_pretrained(args.checkpoint), prompts)
    text = table(figures, len(prompts))
    print(text, end="")
    if args.json:
        content = {"prompts": len(prompts), "modes": {name: run.as_dict() for name, run in figures.items()}}
        args.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    file = args.checkpoint / "README.md"
    if args.card:
        card = file.read_text(encoding="utf-8")
        file.write_text(card.replace(card_table(card).strip("\n"), text.strip("\n")), encoding="utf-8")
    if args.check and card_table(file.read_text(encoding="utf-8")) != text:
        print(f"{file} states other figures: run `vllm-nld nano eval --card`")
        return 1
    return 0


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(cli)
    raise SystemExit(run(cli.parse_args()))
