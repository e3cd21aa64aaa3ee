"""Counts in the engine core: each block's mode, drafts, accepted drafts and passes.

The scheduler notes one `Round` per block. `take` returns them for the step's SchedulerStats in plain types, which vLLM
can send between processes.

    rounds = RoundLog()
    rounds.begin(model_runner_output)                      # contains the worker's report
    rounds.note(request_id, "linear", drafted=31, accepted=7)
    scheduler_stats.nld = rounds.take()
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

LORA, ROUNDS = "lora", "rounds"  # keys of what `take` returns
AUTO = "auto"  # key of the choices of `auto`, see `spec_worker.auto`


class Round(NamedTuple):
    """One block that a target forward verified or took."""

    mode: str
    drafted: int  # draft tokens, without those that a grammar forbids
    accepted: int
    passes: int  # draft or denoising forwards for the block; 0: a group of masks drafted it
    tree: int = 0  # the block length of a tree, whose nodes are the draft tokens; 0: a chain
    masks: int = 0  # rows of masks beside the block


class RoundLog:
    """The rounds of one engine step."""

    def __init__(self) -> None:
        self.rounds: list[Round] = []
        self.passes: Mapping[str, int] = {}  # request id: passes of the block that this step verifies
        self.lora: bool | None = None

    def begin(self, model_runner_output: Any) -> None:
        """Read the worker's report of a step, see `spec_worker.report`."""
        report = getattr(model_runner_output, "nld", None)
        if report is None:  # the step has no blocks
            self.passes = {}
            return
        self.lora, passes = report
        self.passes = dict(zip(model_runner_output.req_ids, passes, strict=False))

    def note(
        self, request_id: str, mode: str, drafted: int, accepted: int, tree: int = 0, masks: int = 0
    ) -> int | None:
        """Note one block's round. Returns the number of its passes.

        None, and there is no round, if the request has not drafted yet: the draft tokens beside the last token of a
        prompt are masks, or vLLM's placeholders.
        """
        passes = self.passes.get(request_id, -1)
        if passes < 0:
            return None
        self.rounds.append(Round(mode, drafted, accepted, passes, tree, masks))
        return passes

    def take(self) -> dict[str, Any] | None:
        """The rounds since the last call; None if there are none."""
        if not self.rounds:
            return None
        rounds, self.rounds = self.rounds, []
        return {ROUNDS: rounds, LORA: self.lora}
