"""The figures of a report: for each variant and tag, from the stored answers and turns.

    found = figures(rows, variants, store)      # plain data, which is also written as report.json
    found["all"]["linear"]["accuracy"]          # [0.62, 0.54, 0.70]: a value and its 95 % interval
    found["all"]["linear"]["against"]["p"]      # adjusted for the number of comparisons

Accuracy counts rows that were checked; a failed request is a wrong answer. Speed and cost come from turns, in which one
variant alone used the server.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from vllm_nld.evaluate import statistics as st
from vllm_nld.evaluate.asking import Answer
from vllm_nld.evaluate.counts import Counts, total
from vllm_nld.evaluate.row import Row
from vllm_nld.evaluate.run import ANSWER, TURN, Turn
from vllm_nld.evaluate.spread import bounds
from vllm_nld.evaluate.store import Store
from vllm_nld.evaluate.variant import Variant

ALL = "all"
QUANTILES = {"p50": 0.5, "p95": 0.95}
Figures = dict[str, dict[str, dict[str, Any]]]  # by tag, then by variant


def frame(rows: Sequence[Row], variants: Sequence[Variant], store: Store) -> Any:
    """All answers as a pandas frame: one line for each row and variant that has been answered."""
    stored = ((v.name, row.name, row.tags, store.get((ANSWER, v.name, row.name))) for v in variants for row in rows)
    return frame_of((name, row, tags, data) for name, row, tags, data in stored if data is not None)


def frame_of(stored: Iterable[tuple[str, str, tuple[str, ...], dict[str, Any]]]) -> Any:
    """The frame of variants' names, rows' names, tags and stored answers."""
    import pandas

    lines = [
        {"variant": variant, "row": row, "tags": tags, **asdict(Answer.load(data))}
        for variant, row, tags, data in stored
    ]
    columns = ["variant", "row", "tags", *Answer.__slots__]
    return pandas.DataFrame(lines, columns=columns).astype({"correct": object, "error": object})


def turns(store: Store, variants: Sequence[Variant], rows: Sequence[Row]) -> dict[str, dict[str, Turn]]:
    """The stored turns of these rows by variant, then by name."""
    names, found = {row.name for row in rows}, {}
    for variant in variants:
        prefix = f"{TURN} / {variant.name} / "
        stored = {key.removeprefix(prefix): data for key, data in store.values.items() if key.startswith(prefix)}
        found[variant.name] = {name: Turn.load(data) for name, data in stored.items() if names.issuperset(data["rows"])}
    return found


def figures(
    answers: Any, taken: Mapping[str, Mapping[str, Turn]], baseline: str, gpus: float = 1, price: float | None = None
) -> Figures:
    """Everything by tag and variant. gpus, price: the server's GPUs, and what one costs per hour."""
    tags = list(dict.fromkeys(tag for found in answers["tags"] for tag in found))
    found: Figures = {}
    for tag in [ALL, *(tag for tag in tags if tag != ALL and len(tags) > 1)]:
        mine = answers if tag == ALL else answers[[tag in found for found in answers["tags"]]]
        found[tag] = {
            name: one(
                mine[mine["variant"] == name],
                mine[mine["variant"] == baseline],
                chosen(taken[name], tag),
                chosen(taken[baseline], tag),
                gpus,
                price,
            )
            for name in dict.fromkeys(answers["variant"])
        }
    adjust(found, baseline)
    return found


def chosen(taken: Mapping[str, Turn], tag: str) -> dict[str, Turn]:
    """The turns of all rows, or those in which every row has the tag."""
    return {name: turn for name, turn in taken.items() if tag == ALL or tag in turn.tags}


def one(
    mine: Any, base: Any, taken: Mapping[str, Turn], theirs: Mapping[str, Turn], gpus: float, price: float | None
) -> dict[str, Any]:
    """The figures of one variant. taken, theirs: its turns and the baseline's."""
    judged = [bool(value) for value in mine["correct"] if value is not None]
    whole = mine[mine["error"].isna()]
    gpu_seconds = scaled(per_response(list(taken.values())), gpus)
    return {
        "rows": len(mine),
        "checked": len(judged),
        "accuracy": st.share(sum(judged), len(judged)),
        "against": against(mine, base),
        "agreement": agreement(mine, base),
        "tokens": int(mine["tokens"].sum()),
        **counted(list(taken.values())),
        "ttft": quantiles([first for firsts in mine["firsts"] for first in firsts]),
        "itl": scaled_all(quantiles([gap for gaps in mine["gaps"] for gap in gaps]), 1e-3),
        "e2e": quantiles(list(whole["seconds"])),
        "tokens_per_s": st.ratio([t.tokens for t in taken.values()], [t.seconds for t in taken.values()]),
        "speedup": speedup(taken, theirs),
        "pairs": sum(name in theirs for name in taken),
        "gpu_seconds": gpu_seconds,
        "cost": None if price is None else scaled(gpu_seconds, price / 3600),
        "failed": len(mine) - len(whole),
        "errors": {str(text): int(count) for text, count in mine["error"].value_counts().items()},
        "refused": int(mine["refused"].sum()),
        "cut": int((mine["finish"] == "length").sum()),
        "disturbed": sum(turn.disturbed for turn in taken.values()),
    }


def against(mine: Any, base: Any) -> dict[str, Any] | None:
    """This variant's right answers and the baseline's, prompt by prompt; None if no row was checked in both."""
    ours, theirs = both(mine, base, "correct")
    pairs = [(bool(a), bool(b)) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    found = st.paired([a for a, _ in pairs], [b for _, b in pairs])
    return None if found is None else asdict(found)


def agreement(mine: Any, base: Any) -> st.Estimate | None:
    """The share of answers with the same text as the baseline's, among rows without a failed request."""
    ours, theirs = both(mine[mine["error"].isna()], base[base["error"].isna()], "digest")
    return st.share(sum(a == b for a, b in zip(ours, theirs, strict=True)), len(ours))


def both(mine: Any, base: Any, column: str) -> tuple[list[Any], list[Any]]:
    """A column's values of the rows that both have answered, in the same order."""
    ours, theirs = (dict(zip(found["row"], found[column], strict=True)) for found in (mine, base))
    shared = [row for row in ours if row in theirs]
    return [ours[row] for row in shared], [theirs[row] for row in shared]


def counted(taken: Sequence[Turn]) -> dict[str, Any]:
    """Forwards and acceptance, of the turns that the server counted."""
    found: list[Counts] = [turn.counts for turn in taken if turn.counts is not None]
    summed = total(found)
    return {
        "tpf": st.ratio([c.tokens for c in found], [c.forwards for c in found]),
        "forwards": int(summed.forwards),
        "acceptance_length": st.ratio([c.verified for c in found], [c.steps for c in found]),
        "by_position": {str(position): share for position, share in summed.by_position.items()},
        "committed": int(summed.kept),
        "rolled_back": int(summed.dropped),
    }


def quantiles(values: Sequence[float]) -> dict[str, st.Estimate | None]:
    return {name: st.quantile(values, q) for name, q in QUANTILES.items()}


def per_response(taken: Sequence[Turn]) -> st.Estimate | None:
    """Seconds of the server per row."""
    return st.ratio([turn.seconds for turn in taken], [len(turn.rows) for turn in taken])


def speedup(taken: Mapping[str, Turn], theirs: Mapping[str, Turn]) -> st.Estimate | None:
    """Rows per second relative to the baseline: the median of the turns with the same rows, and its interval."""
    pairs = [(theirs[name].seconds, turn.seconds) for name, turn in taken.items() if name in theirs]
    if not pairs:
        return None
    gains = [base / mine for base, mine in pairs]
    low, high = bounds(gains)
    return median(gains), low, high


def scaled(estimate: st.Estimate | None, factor: float) -> st.Estimate | None:
    return None if estimate is None else (estimate[0] * factor, estimate[1] * factor, estimate[2] * factor)


def scaled_all(found: Mapping[str, st.Estimate | None], factor: float) -> dict[str, st.Estimate | None]:
    return {name: scaled(estimate, factor) for name, estimate in found.items()}


def adjust(found: Figures, baseline: str) -> None:
    """Adjust the p values for the number of comparisons: those over all rows as one family, those by tag as another."""
    for tags in ([ALL], [tag for tag in found if tag != ALL]):
        compared = [
            row["against"]
            for tag in tags
            for name, row in found[tag].items()
            if name != baseline and row["against"] is not None
        ]
        for one_of, p in zip(compared, st.holm([pair["p"] for pair in compared]), strict=True):
            one_of["raw_p"], one_of["p"] = one_of["p"], p
    for by_variant in found.values():
        for row in by_variant.values():
            if (pair := row["against"]) is not None:
                pair["significant"] = bool(pair["p"] <= st.LEVEL and not math.isclose(pair["difference"], 0))
