"""Stored answers of an evaluation that never ran: prompts with known answers, and modes with known faults.

store, rows, variants = simulate(folder, {"ar": 0.0, "linear": 0.0, "diffusion": 0.3})
"""

import hashlib
import random
from collections.abc import Mapping
from pathlib import Path

from vllm_nld.evaluate.asking import Answer
from vllm_nld.evaluate.counts import Counts
from vllm_nld.evaluate.row import Row
from vllm_nld.evaluate.run import ANSWER, TURN, Turn, name_of, split
from vllm_nld.evaluate.store import Store
from vllm_nld.evaluate.variant import Variant

TOKENS, CONCURRENCY = 40, 4
SPEED = {"ar": 1.0, "linear": 2.0, "auto": 1.9, "diffusion": 2.5}  # relative


def rows_of(count: int) -> list[Row]:
    """Half of them tagged “easy”, half “hard”."""
    return [
        Row(
            f"{number}",
            messages=({"role": "user", "content": f"What is {number} + 1?"},),
            checks=({"exact": f"{number + 1}"},),
            tags=("easy",) if number % 2 else ("hard",),
        )
        for number in range(count)
    ]


def simulate(
    folder: Path, faults: Mapping[str, float], count: int = 120, seed: int = 0, hard_only: bool = False
) -> tuple[Store, list[Row], list[Variant]]:
    """faults: the share of prompts that a mode answers wrongly although ar doesn't. ar itself is wrong on a tenth."""
    source, rows = random.Random(seed), rows_of(count)
    variants = [Variant.parse(name) for name in faults]
    store = Store(folder / "answers.jsonl", {"seed": seed})
    right_in_ar = {row.name: source.random() < 0.9 for row in rows}
    for variant in variants:
        for turn in split(rows, CONCURRENCY):
            for row in turn:
                fault = source.random() < faults[variant.name] and (row.tags == ("hard",) or not hard_only)
                right = right_in_ar[row.name] and not fault
                text = row.checks[0]["exact"] if right else f"wrong in {variant.name if fault else 'ar'}"
                answer = Answer(
                    text,
                    hashlib.sha256(text.encode()).hexdigest()[:16],
                    tokens=TOKENS,
                    firsts=(0.05,),
                    gaps=(10.0,) * 9,
                    seconds=1 / SPEED[variant.mode or "ar"],
                    finish="stop",
                    correct=right,
                    verdicts=(right,),
                )
                store.put((ANSWER, variant.name, row.name), answer.dump())
            seconds = len(turn) / CONCURRENCY / SPEED[variant.mode or "ar"] * source.uniform(0.98, 1.02)
            record = Turn(
                tuple(row.name for row in turn), seconds, TOKENS * len(turn), turn[0].tags, counted(variant, len(turn))
            )
            store.put((TURN, variant.name, name_of(turn)), record.dump())
    return store, rows, variants


def counted(variant: Variant, rows: int) -> Counts:
    """One token per forward in ar; else blocks of 8, half of which are accepted."""
    tokens = TOKENS * rows
    if variant.mode == "ar":
        return Counts(requests=rows, tokens=tokens, forwards=tokens)
    steps = tokens / 4
    lengths = {"1": 0.0, "2": steps / 4, "4": steps / 2, "8": steps, "+Inf": steps}
    return Counts(rows, tokens, 2 * steps, 7 * steps, 3 * steps, 4 * steps, steps, 4 * steps, lengths)
