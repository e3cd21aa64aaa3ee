"""`vllm-nld tune`: which threshold and block length meet a target, found by successive halving.

    vllm-nld tune MODEL_OR_URL --prompts prompts.jsonl --within 0.5
    vllm-nld tune MODEL_OR_URL --prompts prompts.jsonl --within 2 --p95 2.0 --modes diffusion

Prints the server's flag for the fastest setting that is accurate enough and, if asked, quick enough. Exit status: 0
with a setting, 1 if only the baseline meets the target, 2 if the command can't be carried out, 3 if a server fails.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from vllm_nld.evaluate import options as shared
from vllm_nld.evaluate.command import SHOWN, figures_of, offered, open_store, reporting, store_name, take
from vllm_nld.evaluate.differences import most
from vllm_nld.evaluate.figures import ALL
from vllm_nld.evaluate.halving import Target, change, meets, misses, rungs, speed, survivors, winner
from vllm_nld.evaluate.plots import draw
from vllm_nld.evaluate.report import NO_TEXTS, publish
from vllm_nld.evaluate.row import Row
from vllm_nld.evaluate.sections import NONE, Section, estimate, seconds
from vllm_nld.evaluate.store import Store
from vllm_nld.evaluate.target import Target as Server
from vllm_nld.evaluate.target import opened
from vllm_nld.evaluate.variant import BASELINE, Variant, unique

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
DRAFT_THRESHOLDS = (0.5, 0.8)
BLOCKS = (8, 16, 32)
MODES = ("auto", "linear", "diffusion")


def grid(modes: Sequence[str], longest: int) -> list[Variant]:
    """The settings to choose from. Raises ValueError for a mode without settings."""
    blocks = [block for block in BLOCKS if block <= longest] or [longest]
    settings: dict[str, list[dict[str, Any]]] = {
        "auto": [{}],
        "linear": [{"block_length": block} for block in blocks]
        + [{"block_length": blocks[-1], "draft_threshold": value} for value in DRAFT_THRESHOLDS],
        "diffusion": [{"threshold": value, "block_length": block} for value in THRESHOLDS for block in blocks[-2:]],
        "quadratic": [{"block_length": block} for block in blocks],
    }
    for mode in modes:
        if mode not in settings:
            raise ValueError(f"mode {mode!r} has nothing to tune: use {', '.join(settings)}, or --candidates")
    return [Variant(mode, fields) for mode in modes for fields in settings[mode]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vllm-nld tune`."""
    parser.add_argument("target", metavar="MODEL_OR_URL", help="a checkpoint to serve, or the URL of a running server")
    aim = parser.add_argument_group("target")
    aim.add_argument(
        "--within",
        type=float,
        default=0.5,
        metavar="POINTS",
        help="at most this many percentage points less accurate than ar (default: %(default)s)",
    )
    aim.add_argument(
        "--p95", type=float, metavar="SECONDS", help="end-to-end latency that 95 %% of requests stay below"
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--modes", nargs="+", default=list(MODES), metavar="MODE", help=f"default: {' '.join(MODES)}")
    chosen.add_argument("--candidates", nargs="+", metavar="MODE,FIELD=VALUE", help="exactly these settings")
    parser.add_argument("--block-length", type=int, default=32, metavar="B", help="the server's (default: %(default)s)")
    shared.add_arguments(parser, out="runs/tune")


def run(options: argparse.Namespace) -> int:
    """Search, write tune.md and tune.html, print the flag; the exit status."""
    with reporting():
        target = Target(options.within / 100, options.p95)
        asked = [Variant.parse(text) for text in options.candidates or ()]
        candidates = unique(asked or grid(options.modes, options.block_length))
        rows, problems = shared.rows_of(options)
        for problem in problems:
            print(f"{options.prompts}, {problem}{' (left out)' if problem.fatal else ''}", file=sys.stderr)
        store = open_store(options, [options.target], rows)
        baseline = Variant.parse(BASELINE)
        start: dict[str, Any] = {"flags": shlex.split(options.flags), "log": options.out / "server.log"}
        start["tools"] = any("tools" in row.options for row in rows)
        with opened(options.target, candidates, model=options.model, **start) as server:
            variants = [
                variant for variant in offered(server, [baseline, *candidates]) if variant.name != baseline.name
            ]
            reached = search(options, rows, baseline, variants, store, server, target)
        return report(options, rows, baseline, variants, reached, store, target)


def search(
    options: argparse.Namespace,
    rows: list[Row],
    baseline: Variant,
    variants: list[Variant],
    store: Store,
    server: Server,
    target: Target,
) -> dict[str, int]:
    """Ask rung by rung; how many prompts each setting answered."""
    left, reached, done = variants, {variant.name: 0 for variant in [baseline, *variants]}, 0
    for keep, count in rungs(len(variants), len(rows)):
        if done:
            mine = figures_of(rows[:done], [baseline, *left], store, options)[ALL]
            names = survivors(mine, [variant.name for variant in left], target, keep)
            left = [variant for variant in left if variant.name in names]
        if not left:
            break
        settings = "1 setting" if len(left) == 1 else f"{len(left)} settings"
        print(f"{settings} and {baseline.name}, prompts {done + 1} to {count}", file=sys.stderr)
        take(options, rows[done:count], [baseline, *left], store, server)
        done = count
        reached |= {variant.name: count for variant in [baseline, *left]}
    return reached


def report(
    options: argparse.Namespace,
    rows: list[Row],
    baseline: Variant,
    variants: list[Variant],
    reached: dict[str, int],
    store: Store,
    target: Target,
) -> int:
    """Write the report and print its summary; the exit status."""
    mine = {
        variant.name: figures_of(rows[: reached[variant.name]], [baseline, variant], store, options)[ALL][variant.name]
        for variant in [baseline, *variants]
        if reached[variant.name]
    }
    last = [variant for variant in variants if reached[variant.name] == max(reached[v.name] for v in variants)]
    best = winner(mine, [variant.name for variant in last], target)
    chosen = next((variant for variant in variants if variant.name == best), None)
    texts = options.no_texts or options.digests
    publish(
        options.out,
        "tune",
        {
            "target": target.words,
            "best": best,
            "settings": chosen and chosen.settings,
            "figures": mine,
            "prompts": reached,
        },
        title=f"{store_name(options.target)}: settings for {target.words}",
        method=f"{len(rows)} prompts, {options.concurrency} requests at a time, by successive halving: settings that "
        "miss the target beyond doubt, or are slower than enough others, answered fewer prompts. Square brackets: "
        "95 % intervals.",
        paragraphs=words(mine, chosen, baseline.name, target),
        sections=[
            settings_table(mine, baseline.name, reached, target),
            Section("Accuracy and latency", "The same settings: how late the last twentieth ends.", (), (), "latency"),
        ],
        drawn={name: svg for name, svg in draw(mine, baseline.name).items() if name in ("accuracy", "latency")},
        baseline=baseline.name,
        pairs=[] if texts or chosen is None else most(rows, [chosen], store, baseline.name, SHOWN),
        no_texts=NO_TEXTS if texts else "",
    )
    print("\n".join(words(mine, chosen, baseline.name, target)))
    print(f"\nReport: {options.out / 'tune.md'}, {options.out / 'tune.html'}")
    if chosen is not None:
        print(f"\n{chosen.config}")
    return 0 if chosen is not None else 1


def words(mine: dict[str, Any], chosen: Variant | None, baseline: str, target: Target) -> list[str]:
    """The result in words."""
    if chosen is None:
        return [f"No setting is {target.words}: use `{baseline}`, allow more, or ask more prompts."]
    row = mine[chosen.name]
    found = change(row)
    assert found is not None
    parts = [f"Use `{chosen.config}`: `{chosen.name}` is {target.words}, and the fastest such setting."]
    kind = "points of accuracy" if row["against"] is not None else "points of texts that are the same"
    parts.append(
        f"On {row['rows']} prompts it differs from `{baseline}` by {estimate(found, 1, 100)} {kind} and answers "
        f"{estimate(row['speedup'])} times as fast; its E2E P95 is {seconds(row['e2e']['p95'])}."
    )
    if found[1] < -target.within:
        parts.append(
            f"The interval reaches to {100 * found[1]:.1f} points, so these prompts don't prove the target; more of "
            "them would."
        )
    return parts


def settings_table(mine: dict[str, Any], baseline: str, reached: dict[str, int], target: Target) -> Section:
    """All settings, those that answered most prompts first."""
    lines = []

    def rank(name: str) -> tuple[bool, int, bool, float]:
        return name != baseline, -reached[name], not meets(mine[name], target), -speed(mine[name])

    for name in sorted(mine, key=rank):
        row, found = mine[name], change(mine[name])
        outcome = "meets" if meets(row, target) else "misses" if misses(row, target) else "unclear"
        lines.append(
            (
                name,
                str(reached[name]),
                NONE if found is None or name == baseline else estimate(found, 1, 100),
                estimate(row["tpf"]),
                "1" if name == baseline else estimate(row["speedup"]),
                seconds(row["e2e"]["p95"]),
                NONE if name == baseline else outcome,
            )
        )
    header = ("setting", "prompts", f"points from {baseline}", "TPF", f"× {baseline}", "E2E P95", "target")
    note = f"Target: {target.words}. Meets and unclear: as far as these prompts tell; misses: beyond doubt."
    return Section("Settings", note, header, tuple(lines), "accuracy")
