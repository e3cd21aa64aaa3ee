"""How often `vllm-nld evaluate` calls AR different from AR, and how often it finds a wrong mode: seeded repeats.

    python -m bench alarms

nano answers held-out prompts with sampling, so AR with one seed and AR with another differ in many answers, but not in
how good they are. Diffusion with a threshold of 0.3 takes tokens that are mostly guesses. Each repeat has seeds of its
own, and is judged as a report judges two modes. At a level of 5 %, chance alone calls AR different from AR in at most
one repeat of twenty on average, and in more than three of twenty with a probability of 1.6 %. Nothing is timed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vllm_nld.evaluate.asking import Answer
from vllm_nld.evaluate.prompts import NANO, interleave
from vllm_nld.evaluate.prompts import read as read_rows
from vllm_nld.evaluate.row import Row
from vllm_nld.evaluate.run import ANSWER, Run
from vllm_nld.evaluate.spread import table
from vllm_nld.evaluate.statistics import LEVEL, holm, paired
from vllm_nld.evaluate.store import Store
from vllm_nld.evaluate.variant import Variant
from vllm_nld.nano import checkpoint_path
from vllm_nld.tools.provenance import describe, provenance
from vllm_nld.tools.server import Server

AR, WRONG = Variant.parse("ar"), Variant.parse("diffusion,threshold=0.3")
REPEATS, FEW = 20, 2
APART = 1000  # between the seeds of a repeat's two AR runs
CLIENTS = 16
FLAGS = ["--served-model-name", "bench", "--dtype", "float32", "--enforce-eager", "--max-num-seqs", f"{CLIENTS}"]
FLAGS += ["--max-model-len", "1024"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", type=int, default=60, help="held-out prompts of a repeat (default: %(default)s)")
    parser.add_argument("--repeats", type=int, help=f"default: {REPEATS}; quick: {FEW}")
    parser.add_argument(
        "--temperature", type=float, default=1.3, help="so high that AR with another seed often differs (default: 1.3)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench-alarms"), help="folder for answers and log")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Ask, judge, print and return every repeat's verdicts. Answers are kept: a cut run goes on where it was."""
    options.out.mkdir(parents=True, exist_ok=True)
    rows = interleave(read_rows(NANO)[0])[: options.prompts]
    count = options.repeats or (FEW if options.quick else REPEATS)
    with Server(checkpoint_path(), FLAGS, log=options.out / "server.log") as server:
        found = [repeat(server.url, rows, seed, options) for seed in tqdm(range(count), desc="repeats")]
    result = {
        "provenance": provenance(),
        "prompts": len(rows),
        "temperature": options.temperature,
        "level": LEVEL,
        "repeats": found,
    }
    print(report(result))
    return result


def counted(result: dict[str, Any]) -> tuple[int, int, int, int]:
    """Repeats; alarms: those in which AR differs from AR; as many as chance explains; and those that found WRONG."""
    from scipy.stats import binom

    repeats, level = result["repeats"], result["level"]
    alarms, finds = (sum(one[p] <= level for one in repeats) for p in ("again_p", "wrong_p"))
    return len(repeats), alarms, int(binom.ppf(1 - level, len(repeats), level)), finds


def summary(result: dict[str, Any]) -> str:
    """A sentence for docs/."""
    repeats, alarms, chance, finds = counted(result)
    changed = [one["changed"] for one in result["repeats"]]
    return (
        f"`python -m bench alarms`: {repeats} evaluations of {result['prompts']} of nano's held-out prompts, each with "
        f"other seeds,\ntemperature {result['temperature']:g}, level {100 * result['level']:g} %. AR with another seed "
        f"was called different from AR in {alarms} of {repeats}\n(chance alone explains up to {chance}), "
        f"diffusion with a threshold of 0.3 in {finds} of {repeats}.\nAR's two runs differed in {min(changed)} to "
        f"{max(changed)} prompts being right; the exact test needs six, so at low temperatures it can't alarm."
    )


def repeat(url: str, rows: Sequence[Row], seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One evaluation: the share of right answers in each run, and p against AR, adjusted for two comparisons."""
    base, wrong = (right(url, rows, variant, seed, options) for variant in (AR, WRONG))
    again = right(url, rows, AR, seed + APART, options)
    values = [pair.p for ours in (again, wrong) if (pair := paired(ours, base)) is not None]
    again_p, wrong_p = holm(values)
    shares = {name: sum(found) / len(rows) for name, found in (("ar", base), ("again", again), ("wrong", wrong))}
    changed = sum(one != other for one, other in zip(again, base, strict=True))
    return {"seed": seed, **shares, "changed": changed, "again_p": again_p, "wrong_p": wrong_p}


def right(url: str, rows: Sequence[Row], variant: Variant, seed: int, options: argparse.Namespace) -> list[bool]:
    """Which rows a variant answers correctly with this seed."""
    settings = {"prompts": len(rows), "temperature": options.temperature}
    store = Store(options.out / f"{seed}.jsonl", settings, keep=True)
    defaults = {"temperature": options.temperature}
    run = Run(store, url, "bench", concurrency=CLIENTS, seed=seed, defaults=defaults)
    run.ask(rows, [variant])
    return [bool(Answer.load(store.get((ANSWER, variant.name, row.name))).correct) for row in rows]


def report(result: dict[str, Any]) -> str:
    """Every repeat, and how many are significant."""
    repeats, level = result["repeats"], result["level"]
    lines = [
        [str(one["seed"]), *(f"{100 * one[name]:.0f} %" for name in ("ar", "again", "wrong")), str(one["changed"])]
        + [f"{one[p]:.3f}{' *' if one[p] <= level else ''}" for p in ("again_p", "wrong_p")]
        for one in repeats
    ]
    header = ["seed", "AR", "AR, other seed", WRONG.name, "changed in AR", "p of AR", f"p of {WRONG.name}"]
    count, alarms, chance, finds = counted(result)
    about = (
        f"{result['prompts']} of nano's held-out prompts, temperature {result['temperature']:g}; right answers, and "
    )
    about += f"McNemar's p against AR, adjusted (Holm); *: significant at {100 * level:g} %."
    last = f"AR against AR: {alarms} of {count} significant (chance alone explains up to {chance}). "
    last += f"{WRONG.name}: {finds} of {count}."
    return "\n\n".join([describe(result["provenance"]), about, table(header, lines), last])
