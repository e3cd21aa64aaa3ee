"""What each mode drafts, as data, and the real controller of `auto`.

POLICIES["linear"].taken                        # False: blocks are verified
chooser = Chooser(block=32, most_requests=64, budget=8192, steps=steps)
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_nld.plan.steps import Steps, Work, sizes_up_to

CONTROLLER_MODULE = "spec_worker.controller"  # by name: the plugin imports no worker code
CALIBRATION_CONTEXT = 16  # tokens of the requests that a server measures at start-up


@dataclass(frozen=True, slots=True)
class Policy:
    """A mode. drafts: requests draft blocks. by_load: of a length chosen in each step. taken: without verification."""

    name: str
    drafts: bool = True
    by_load: bool = False
    taken: bool = False


POLICIES = {
    policy.name: policy
    for policy in (
        Policy("ar", drafts=False),
        Policy("linear"),
        Policy("auto", by_load=True),
        Policy("diffusion", taken=True),
    )
}


class Chooser:
    """One replica's controller, calibrated as at a server's start, and fed as its scheduler feeds it."""

    def __init__(self, block: int, most_requests: int, budget: int, steps: Steps) -> None:
        """budget: tokens that a step may have."""
        module = importlib.import_module(CONTROLLER_MODULE)
        self._load = module.Load
        self.controller = module.Controller(module.lengths_up_to(block), most_requests)
        self.length = 1  # of the latest choice
        self._answers = module.Answers()
        self.waiting_share: int = module.WAITING_SHARE
        for requests in sizes_up_to(most_requests):
            for length in self.controller.lengths:
                if requests * length > budget:
                    continue
                work = Work(
                    requests=requests,
                    verified=requests * length,
                    context=requests * CALIBRATION_CONTEXT,
                    drafted=requests * length if length > 1 else 0,
                    passes=1,
                )
                self.controller.costs.calibrate(length, requests, 1e3 * steps.seconds(work))

    def choose(self, requests: int, room: int) -> int:
        """The block length of the next drafts; the latest one if nobody decodes.

        requests: that get tokens in this step.
        """
        if requests:
            rates = {"starts": self._answers.starts, "prompts": self._answers.prompts}
            self.length = int(self.controller.choose(self._load(requests, room=room, **rates)))
        return self.length

    def note(self, verified: int, work: Work, seconds: float, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """Count a step. verified: the length of its blocks; then the drafts of each, and those that were accepted."""
        if not work.requests + work.prompts:
            return
        self.controller.verified(drafted, accepted)
        rows = work.prompt + work.verified + work.drafted
        self.controller.took(verified, work.requests, rows, 1e3 * seconds)

    def ended(self, prompt: int, tokens: int) -> None:
        """Count an answer that has ended."""
        self._answers.count(prompt, tokens)
