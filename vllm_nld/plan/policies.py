"""What each mode drafts, as data, and the real controller of `auto`.

POLICIES["linear"].taken                        # False: blocks are verified
chooser = Chooser(block=32, most_requests=64, budget=8192, steps=steps)
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_nld.plan.steps import Steps, Work, rows_per_request, sizes_up_to

CONTROLLER_MODULE = "spec_worker.controller"  # by name: the plugin imports no worker code
SMOOTHING = 0.2  # weight of the latest step in the other requests' load, as in the scheduler
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
        self._others = [0.0, 0.0]  # rows and tokens of requests that compute prompts, smoothed
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

    def choose(self, requests: int, prompt_rows: int, first_tokens: int, room: int) -> int:
        """The block length of the step's drafts; 1 if nobody drafts."""
        for index, now in enumerate((prompt_rows, first_tokens)):
            self._others[index] += SMOOTHING * (now - self._others[index])
        if not requests:
            return 1
        load = self._load(requests, {}, round(self._others[0]), self._others[1], room)
        return int(self.controller.choose(load))

    def note(
        self,
        verified: int,
        chosen: int,
        work: Work,
        seconds: float,
        drafted: Sequence[int],
        accepted: Sequence[int],
    ) -> None:
        """Count a step. verified, chosen: the block lengths that it verified and drafted; then its blocks' drafts."""
        if not work.requests:
            return
        self.controller.verified(drafted, accepted)
        if verified == chosen:
            rows = work.requests * rows_per_request(chosen) + work.prompt
            self.controller.took(chosen, work.requests, rows, 1e3 * seconds)
