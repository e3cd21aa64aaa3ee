"""The answers in which a variant differs most from the baseline, for a person to read side by side.

for pair in most(rows, variants, store, "ar", 10):
    pair.question, pair.baseline, pair.answer
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_nld.evaluate.asking import Answer
from vllm_nld.evaluate.row import Row
from vllm_nld.evaluate.run import ANSWER
from vllm_nld.evaluate.store import Store
from vllm_nld.evaluate.variant import Variant

LONGEST = 4000  # characters of a text that are compared and shown


@dataclass(frozen=True, slots=True)
class Pair:
    """One row's two answers. similarity: 0 to 1."""

    row: str
    variant: str
    similarity: float
    question: str
    baseline: str
    answer: str
    correct: tuple[bool | None, bool | None]  # the baseline's, ours
    reference: str | None


def most(rows: Sequence[Row], variants: Sequence[Variant], store: Store, baseline: str, count: int) -> list[Pair]:
    """The least similar answers: a verdict that changed goes first. Empty if the texts weren't kept."""
    pairs: list[Pair] = []
    for row in rows:
        base = store.get((ANSWER, baseline, row.name))
        for variant in variants:
            mine = store.get((ANSWER, variant.name, row.name))
            if variant.name != baseline and base is not None and mine is not None:
                pair = compare(row, variant.name, Answer.load(base), Answer.load(mine))
                pairs += [pair] if pair is not None else []
    pairs.sort(key=lambda pair: (pair.correct[0] == pair.correct[1], pair.similarity))
    return distinct(pairs)[:count]


def compare(row: Row, variant: str, base: Answer, mine: Answer) -> Pair | None:
    """A pair; None if the texts are equal or weren't kept."""
    if base.text is None or mine.text is None or base.digest == mine.digest:
        return None
    theirs, ours = base.text[:LONGEST], mine.text[:LONGEST]
    similarity = difflib.SequenceMatcher(None, theirs, ours, autojunk=False).quick_ratio()
    correct = (base.correct, mine.correct)
    return Pair(row.name, variant, similarity, row.question[:LONGEST], theirs, ours, correct, row.reference)


def distinct(pairs: Sequence[Pair]) -> list[Pair]:
    """Without repetitions: several settings of a mode often give the same row's same answer."""
    return list({(pair.row, pair.baseline, pair.answer): pair for pair in reversed(pairs)}.values())[::-1]
