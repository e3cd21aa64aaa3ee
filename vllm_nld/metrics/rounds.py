"""What the engine core knows of a step: each verified block's mode, drafts, accepted drafts and passes.

The scheduler notes one `Round` a block; `take` hands them to the step's SchedulerStats as plain lists, since that is
what vLLM sends from process to process.

    rounds = RoundLog()
    rounds.begin(model_runner_output)                      # what the worker reports with the step's tokens
    rounds.note(request_id, "linear", drafted=31, accepted=7)
    scheduler_stats.nld = rounds.take()
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

LORA, ROUNDS = "lora", "rounds"  # keys of what `take` returns


class Round(NamedTuple):
    """One block that a target forward took."""

    mode: str
    drafted: int  # draft tokens, those that a grammar forbade left out
    accepted: int
    passes: int  # draft or denoising forwards that made the block


class RoundLog:
    """The rounds of one engine step."""

    def __init__(self) -> None:
        self.rounds: list[Round] = []
        self.passes: Mapping[str, int] = {}  # request id: passes of the block that this step verifies
        self.lora: bool | None = None

    def begin(self, model_runner_output: Any) -> None:
        """Read what the worker sent along with a step's tokens, see `spec_worker.report`."""
        report = getattr(model_runner_output, "nld", None)
        if report is None:  # a step that verifies no block has none
            self.passes = {}
            return
        self.lora, passes = report
        self.passes = dict(zip(model_runner_output.req_ids, passes, strict=False))

    def note(self, request_id: str, mode: str, drafted: int, accepted: int) -> int:
        """Keep one block's round; returns the passes that made the block.

        None did, and there is no round, where vLLM runs the last token of a cached prompt like a decode, with
        placeholders for drafts.
        """
        passes = self.passes.get(request_id, 0)
        if passes:
            self.rounds.append(Round(mode, drafted, accepted, passes))
        return passes

    def take(self) -> dict[str, Any] | None:
        """The rounds since the last call, and None where there is nothing to say."""
        if not self.rounds:
            return None
        rounds, self.rounds = self.rounds, []
        return {ROUNDS: rounds, LORA: self.lora}
