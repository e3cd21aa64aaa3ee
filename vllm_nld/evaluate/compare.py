"""`vllm-nld compare A B`: is B worse than A? Two servers, or two folders of `vllm-nld evaluate`.

    vllm-nld compare http://stable:8000 http://canary:8000 --prompts prompts.jsonl
    vllm-nld compare runs/monday runs/friday --max-accuracy-drop 0.5

Writes compare.md, compare.html and compare.json. Exit status: 0 if nothing is worse, 1 if something is (with
--unclear-is-worse, also if it may be), 2 if the command can't be carried out, 3 if a server fails.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm_nld.evaluate import comparison
from vllm_nld.evaluate import options as shared
from vllm_nld.evaluate.command import FILE, SHOWN, open_store, reporting, take
from vllm_nld.evaluate.differences import Pair, most
from vllm_nld.evaluate.figures import frame, frame_of, turns
from vllm_nld.evaluate.run import ANSWER, TURN, Turn
from vllm_nld.evaluate.store import read
from vllm_nld.evaluate.target import is_url, look
from vllm_nld.evaluate.variant import DEFAULT, Variant, unique
from vllm_nld.evaluate.verdict import Limits, Verdict, verdicts, worst

Side = tuple[Any, dict[str, dict[str, Turn]]]  # answers, and turns by variant


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vllm-nld compare`."""
    parser.add_argument("a", metavar="A", help="the URL of a server, or a folder of `vllm-nld evaluate`: what is good")
    parser.add_argument("b", metavar="B", help="another one: what is compared with it")
    parser.add_argument("--modes", nargs="+", metavar="MODE", help="as in evaluate (default: what each server does)")
    limits, default = parser.add_argument_group("limits"), Limits()
    for name, what in (
        ("accuracy-drop", "percentage points of accuracy that B may lose"),
        ("latency-growth", "per cent by which a latency of B may be longer"),
        ("acceptance-drop", "per cent of acceptance length or TPF that B may lose"),
        ("more-failures", "percentage points of requests that may fail beyond those that fail in A"),
    ):
        value = 100 * getattr(default, NAMES[name])
        limits.add_argument(
            f"--max-{name}", type=float, default=value, metavar="X", help=f"{what} (default: {value:g})"
        )
    limits.add_argument(
        "--unclear-is-worse", action="store_true", help="what these prompts can't decide counts as worse"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the verdicts to FILE")
    shared.add_arguments(parser, out="runs/compare")


NAMES = {
    "accuracy-drop": "accuracy",
    "latency-growth": "latency",
    "acceptance-drop": "acceptance",
    "more-failures": "failures",
}


def run(options: argparse.Namespace) -> int:
    """Compare, print the verdicts; the exit status."""
    with reporting():
        limits = Limits(
            **{part: getattr(options, f"max_{name.replace('-', '_')}") / 100 for name, part in NAMES.items()}
        )
        if is_url(options.a) != is_url(options.b):
            raise shared.Usage("A and B must both be URLs of servers, or both be folders of `vllm-nld evaluate`")
        if is_url(options.a):
            a, b, pairs = ask_both(options)
        else:
            a, b, pairs = stored(Path(options.a)), stored(Path(options.b)), []
        found = compared(a, b, limits, options.modes)
        files = comparison.write(options.out, options.a, options.b, found, pairs)
        print(comparison.text(options.a, options.b, found))
        print("\nReport: " + ", ".join(str(file) for file in files if file.suffix in (".md", ".html")))
        if options.json:
            options.json.write_text(json.dumps(comparison.plain(found), indent=1) + "\n", encoding="utf-8")
        return int(any(worst(judged, options.unclear_is_worse) for judged in found.values()))


def ask_both(options: argparse.Namespace) -> tuple[Side, Side, list[Pair]]:
    """Both servers answer the same rows in alternating turns; also the answers that differ most."""
    rows, _ = shared.rows_of(options)
    store = open_store(options, [options.a, options.b], rows)
    asked = unique([Variant.parse(mode) for mode in options.modes or [DEFAULT]])
    targets = [look(url, options.model) for url in (options.a, options.b)]
    sides = [
        [replace(v, label=f"{side}: {v.name}", url=target.url, model=target.model) for v in asked]
        for side, target in zip("AB", targets, strict=True)
    ]
    take(options, rows, [variant for pair in zip(*sides, strict=True) for variant in pair], store, targets[0])
    found = []
    for variants in sides:
        answers, taken = frame(rows, variants, store), turns(store, variants, rows)
        names = {labelled.name: variant.name for labelled, variant in zip(variants, asked, strict=True)}
        answers["variant"] = answers["variant"].map(names)
        found.append((answers, {names[name]: counted for name, counted in taken.items()}))
    hidden = options.no_texts or options.digests
    pairs = (
        [] if hidden else [pair for a, b in zip(*sides, strict=True) for pair in most(rows, [b], store, a.name, SHOWN)]
    )
    return found[0], found[1], pairs[:SHOWN]


def stored(folder: Path) -> Side:
    """The answers and turns of a folder. Raises Usage if it has none."""
    file = folder / FILE if folder.is_dir() else folder
    try:
        _, values = read(file)
    except OSError as error:
        raise shared.Usage(f"{file} can't be read: {error.strerror}; name a folder of `vllm-nld evaluate`") from None
    split_keys = [(*key.split(" / ", 2), value) for key, value in values.items() if key.count(" / ") >= 2]
    answers = frame_of((name, row, ("all",), data) for kind, name, row, data in split_keys if kind == ANSWER)
    taken: dict[str, dict[str, Turn]] = {}
    for kind, name, turn, data in split_keys:
        if kind == TURN:
            taken.setdefault(name, {})[turn] = Turn.load(data)
    if not len(answers):
        raise shared.Usage(f"{file} has no answers")
    return answers, taken


def compared(a: Side, b: Side, limits: Limits, modes: list[str] | None = None) -> dict[str, list[Verdict]]:
    """The verdicts for each variant that both have. Raises Usage if they have none, or no row, in common."""
    names = [Variant.parse(mode).name for mode in modes] if modes else list(dict.fromkeys(a[0]["variant"]))
    shared_names = [name for name in names if name in set(a[0]["variant"]) & set(b[0]["variant"])]
    if not shared_names:
        raise shared.Usage("A and B have no mode in common: name one that both have with --modes")
    found: dict[str, list[Verdict]] = {}
    for name in shared_names:
        ours, theirs = (side[0][side[0]["variant"] == name] for side in (a, b))
        if not set(ours["row"]) & set(theirs["row"]):
            raise shared.Usage("A and B have no prompt in common: evaluate both with the same --prompts")
        found[name] = verdicts(ours, theirs, a[1].get(name, {}), b[1].get(name, {}), limits)
    return found
