"""Comparisons of answers, token by token, as plain data."""

from collections.abc import Sequence
from typing import Any

from bench.gpu_check.record import DIFF, FAIL, OK, Finding

Tokens = Sequence[Sequence[int]]  # of several answers


def lossless(ours: Tokens, exact: Tokens, known: Sequence[Any], dtype: str) -> Finding:
    """Our answers against AR's: the same in fp32, and in bf16 up to near ties.

    known: the log probabilities of AR's answers, see `near_ties.likeliest`.
    """
    from tests.spec_worker.near_ties import GAP, divergence

    gaps = [divergence(*answer) for answer in zip(ours, exact, known, strict=True)]
    left = [gap for gap in gaps if gap is not None]
    data = {"tokens": [list(answer) for answer in ours]}
    total = f"{len(ours)} answers, {sum(map(len, exact))} tokens"
    if not left:
        return Finding(OK, f"{total}: the same", data)
    text = f"{total}: {len(left)} answers differ, where the logits are up to {max(left):.2g} apart"
    if max(left) > GAP:
        return Finding(FAIL, f"{text}: no near tie. {where(ours, exact)}", data)
    if dtype == "float32":
        return Finding(DIFF, f"{text}: near ties, which fp32 should tell apart. {where(ours, exact)}", data)
    return Finding(OK, f"{text}: near ties", data)


def same(ours: Tokens, exact: Tokens, dtype: str) -> Finding:
    """Answers that have no AR to be compared with. In bf16 some may differ: a block commits by a threshold."""
    differ = sum(list(mine) != list(other) for mine, other in zip(ours, exact, strict=True))
    data = {"tokens": [list(answer) for answer in ours]}
    text = f"{len(ours)} answers, {sum(map(len, exact))} tokens"
    if not differ:
        return Finding(OK, f"{text}: the same", data)
    text = f"{text}: {differ} answers differ. {where(ours, exact)}"
    if dtype == "float32":
        return Finding(FAIL, text, data)
    return Finding(DIFF if 2 * differ > len(ours) else OK, text, data)


def where(ours: Tokens, exact: Tokens) -> str:
    """The first answers that differ, and from which token on."""
    places = [
        f"{index} from token {next((at for at, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b), 'end')}"
        for index, (mine, other) in enumerate(zip(ours, exact, strict=True))
        if list(mine) != list(other)
    ]
    return f"Answers {', '.join(places[:4])}"
