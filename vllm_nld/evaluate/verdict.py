"""Is B worse than A? One verdict for each measure, from the same prompts and turns in both.

    for verdict in verdicts(a_answers, b_answers, a_turns, b_turns, Limits(accuracy=0.01)):
        verdict.name, verdict.outcome           # OK, WORSE or UNCLEAR

A measure is WORSE if its limit is exceeded beyond doubt, OK if that is ruled out, and UNCLEAR if neither is
sure. A slow moment affects all prompts of a turn, so a single turn leaves doubt about every change of speed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_nld.evaluate import statistics as st
from vllm_nld.evaluate.counts import Counts
from vllm_nld.evaluate.figures import both
from vllm_nld.evaluate.run import Turn

OK, WORSE, UNCLEAR, MISSING = "ok", "worse", "unclear", "not measured"


@dataclass(frozen=True, slots=True)
class Limits:
    """By how much B may fall behind A, as shares. accuracy and failures are differences, the others relative."""

    accuracy: float = 0.01
    latency: float = 0.1
    acceptance: float = 0.05
    failures: float = 0.01

    def __post_init__(self) -> None:
        if min(self.accuracy, self.latency, self.acceptance, self.failures) < 0:
            raise ValueError("a limit can't be negative")


@dataclass(frozen=True, slots=True)
class Verdict:
    """One measure. change: B's difference from A or its ratio to A, with its interval. limit: the worst that is OK."""

    name: str
    outcome: str
    change: st.Estimate | None
    limit: float
    relative: bool


def judge(
    name: str, change: st.Estimate | None, limit: float, *, relative: bool, more_is_worse: bool, single: bool = False
) -> Verdict:
    """Compare a change's interval with its limit. single: from one turn, which proves only that all is equal."""
    if change is None:
        return Verdict(name, MISSING, None, limit, relative)
    if single and change[0] != (1 if relative else 0):
        return Verdict(name, UNCLEAR, change, limit, relative)
    sign = 1 if more_is_worse else -1
    _, low, high = change
    best, worst = sorted((sign * low, sign * high))
    outcome = OK if worst <= sign * limit else WORSE if best > sign * limit else UNCLEAR
    return Verdict(name, outcome, change, limit, relative)


def verdicts(
    mine_a: Any, mine_b: Any, turns_a: Mapping[str, Turn], turns_b: Mapping[str, Turn], limits: Limits
) -> list[Verdict]:
    """B against A: accuracy, failures, latency P50 and P95, time to the first token, acceptance, tokens per forward."""
    slower, single = 1 + limits.latency, sum(name in turns_a for name in turns_b) < 2
    whole_a, whole_b = (found[found["error"].isna()] for found in (mine_a, mine_b))
    b_seconds, a_seconds = both(whole_b, whole_a, "seconds")
    b_firsts, a_firsts = both(whole_b, whole_a, "firsts")
    firsts = [firsts[0] for firsts in b_firsts], [firsts[0] for firsts in a_firsts]
    judged = [
        judge("accuracy", accuracy(mine_b, mine_a), -limits.accuracy, relative=False, more_is_worse=False),
        judge("failures", failures(mine_b, mine_a), limits.failures, relative=False, more_is_worse=True),
    ]
    for name, pair, q in (
        ("E2E P50", (b_seconds, a_seconds), 0.5),
        ("E2E P95", (b_seconds, a_seconds), 0.95),
        ("TTFT P95", firsts, 0.95),
    ):
        change = st.quantile_ratio(*pair, q)
        judged.append(judge(name, change, slower, relative=True, more_is_worse=True, single=single))
    fewer = 1 - limits.acceptance
    for name, above, below in (("acceptance length", "verified", "steps"), ("TPF", "tokens", "forwards")):
        shared = both_counted(turns_b, turns_a)
        change = counted(shared, above, below)
        judged.append(judge(name, change, fewer, relative=True, more_is_worse=False, single=len(shared) == 1))
    return judged


def accuracy(ours: Any, theirs: Any) -> st.Estimate | None:
    """The paired difference of right answers."""
    mine, other = both(ours, theirs, "correct")
    pairs = [(bool(a), bool(b)) for a, b in zip(mine, other, strict=True) if a is not None and b is not None]
    found = st.paired([a for a, _ in pairs], [b for _, b in pairs])
    return None if found is None else (found.difference, found.low, found.high)


def failures(ours: Any, theirs: Any) -> st.Estimate | None:
    """The paired difference of failed requests."""
    mine, other = both(ours, theirs, "error")
    found = st.paired([isinstance(error, str) for error in mine], [isinstance(error, str) for error in other])
    if found is None:
        return None
    if not found.gained and not found.lost:
        return 0.0, 0.0, 0.0  # nothing failed on either side: that needs no more prompts
    return found.difference, found.low, found.high


def both_counted(ours: Mapping[str, Turn], theirs: Mapping[str, Turn]) -> list[tuple[Counts, Counts]]:
    """What both servers counted in the turns that both counted."""
    pairs = [(ours[name].counts, theirs[name].counts) for name in ours if name in theirs]
    return [(mine, other) for mine, other in pairs if mine is not None and other is not None]


def counted(shared: Sequence[tuple[Counts, Counts]], above: str, below: str) -> st.Estimate | None:
    """The ratio of two of our counts, relative to theirs; None without turns."""
    mine, other = ([pair[side] for pair in shared] for side in (0, 1))
    parts = [([getattr(c, above) for c in side], [getattr(c, below) for c in side]) for side in (mine, other)]
    return st.ratio_of_ratios(parts[0], parts[1]) if shared else None


def worst(found: list[Verdict], unclear_is_worse: bool = False) -> bool:
    """Whether anything is worse; on request, also if anything is unclear."""
    return any(verdict.outcome == WORSE or (unclear_is_worse and verdict.outcome == UNCLEAR) for verdict in found)
