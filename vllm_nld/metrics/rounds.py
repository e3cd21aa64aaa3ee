"""What the engine core knows of a step: each verified block's mode, drafts, accepted drafts and passes.

The scheduler notes one `Round` a block; `take` hands them to the step's SchedulerStats as plain lists, since that is
what vLLM sends from process to process.

    rounds = RoundLog(vllm_config)
    rounds.begin(model_runner_output)                          # what the worker reports with the step's tokens
    rounds.note(request, drafted=31, accepted=7)               # True if the block was verified by a rejection sampler
    scheduler_stats.nld = rounds.take()
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from vllm_nld.metrics.labels import UNVERIFIED, default_mode, mode_of

LORA, ROUNDS = "lora", "rounds"  # keys of what `take` returns


class Round(NamedTuple):
    """One block that a target forward took."""

    mode: str
    drafted: int  # draft tokens, those that a grammar forbade left out
    accepted: int
    passes: int  # draft or denoising forwards that made the block


class RoundLog:
    """The rounds of one engine step."""

    def __init__(self, vllm_config: Any) -> None:
        self.default = default_mode(vllm_config)
        self.rounds: list[Round] = []
        self.passes: Mapping[str, int] = {}  # request id: passes of the block that it verifies; 1 if nobody says
        self.lora: bool | None = None

    def begin(self, model_runner_output: Any) -> None:
        """Read what the worker sent along with a step's tokens, see `spec_worker.report`."""
        report = getattr(model_runner_output, "nld", None)
        if report is not None:  # a step without a request has none
            self.lora, passes = report
            self.passes = dict(zip(model_runner_output.req_ids, passes, strict=False))

    def note(self, request: Any, drafted: int, accepted: int) -> bool:
        """Count one block; returns whether it was verified, which blocks of diffusion mode are not.

        No pass made it where vLLM runs the last token of a cached prompt like a decode, with placeholders for drafts.
        """
        mode = getattr(request, "nld_mode", None)
        if mode is None:  # read once a request, and kept with it
            mode = request.nld_mode = mode_of(request.sampling_params, self.default)
        passes = self.passes.get(request.request_id, 1)
        if passes:
            self.rounds.append(Round(mode, drafted, accepted, passes))
        return passes > 0 and mode not in UNVERIFIED

    def take(self) -> dict[str, Any] | None:
        """The rounds since the last call, and None where there is nothing to say."""
        if not self.rounds:
            return None
        rounds, self.rounds = self.rounds, []
        return {ROUNDS: rounds, LORA: self.lora}
