"""Decides whether an answer is right: all checks of its row, as far as this run carries them out.

scorer = Scorer(run_commands=True, judge=None)
answer = scorer.score(row, answer)          # answer.correct: True, False, or None if nothing was checked
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from vllm_nld.evaluate import checks, sandbox
from vllm_nld.evaluate.asking import Answer
from vllm_nld.evaluate.judge import Judge
from vllm_nld.evaluate.row import Row

AT_A_TIME = 4  # judges and commands take long


class Scorer:
    """run_commands: whether checks may run commands. judge: the model that answers their questions, if any."""

    def __init__(self, run_commands: bool = False, judge: Judge | None = None) -> None:
        self.run_commands, self.judge = run_commands, judge

    def carries_out(self, check: Mapping[str, Any]) -> bool:
        """Whether this run carries the check out."""
        name = checks.kind(check)
        return (name != checks.COMMAND or self.run_commands) and (name != checks.JUDGE or self.judge is not None)

    def score_all(self, rows: Sequence[Row], answers: Sequence[Answer]) -> list[Answer]:
        """The answers with their verdicts."""
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            return list(pool.map(self.score, rows, answers))

    def score(self, row: Row, answer: Answer) -> Answer:
        """A failed request is a wrong answer. Verdicts of None don't count: nobody gave them."""
        if answer.error is not None:
            return replace(answer, correct=False if any(map(self.carries_out, row.checks)) else None)
        verdicts = tuple(self.verdict(row, check, answer) for check in row.checks)
        given = [verdict for verdict in verdicts if verdict is not None]
        return replace(answer, verdicts=verdicts, correct=all(given) if given else None)

    def verdict(self, row: Row, check: Mapping[str, Any], answer: Answer) -> bool | None:
        """One check's verdict; None if it is not carried out, or if the judge gives none."""
        text = checks.final((answer.final if answer.final is not None else answer.text) or "")
        if not self.carries_out(check):
            return None
        name = checks.kind(check)
        if name == checks.COMMAND:
            return sandbox.run(check, text)
        if name == checks.JUDGE:
            assert self.judge is not None
            return self.judge.holds(check[checks.JUDGE], row.question, text, row.reference)
        return checks.holds(check, text)
