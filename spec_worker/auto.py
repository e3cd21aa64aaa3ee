"""Block lengths of `auto` requests: feeds the controller with what the scheduler sees, and reports its choices.

    auto.rests(requests)                                       # while a step is scheduled; if so, that is all
    auto.choose(decodings, other_rows, other_tokens, room)
    step = auto.step(verified, requests, starts, rows)         # what the step is about to do; travels with it
    auto.note(request_id, drafted, accepted)                   # each block that the step verified
    auto.finish(step, busy, outputs)                           # when the step's output has arrived
    auto.ended(prompt, tokens)                                 # a request ended

A step's time is the time since the previous output arrived: the draft pass that followed it, the verifying forward, and
what the engine does between forwards. The time before the first step after a pause does not count.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from vllm.logger import init_logger

from spec_worker.controller import Answers, Controller, Load, lengths_up_to
from vllm_nld.serving.decoding import Decoding
from vllm_nld.serving.requests import ServerModes
from vllm_nld.serving.settings import Settings

logger = init_logger("vllm.plugins.nld")  # under "vllm", where its log level and format apply

MEASURED = 4  # one in so many AR steps is measured: a step is short, and what it costs to measure is not
SMOOTHING = 0.2  # weight of the latest step in averages over steps
QUIET = 60.0  # seconds between log lines about the fallback


class Step(NamedTuple):
    """What a scheduled step is about to do. It travels with the step's SchedulerOutput, in plain types."""

    begun: float  # seconds, on the engine core's clock
    resumed: bool  # the engine had nothing to do before
    verified: int  # block length of `auto` requests, of the blocks that the step verifies
    drafted: int  # and of those that are drafted next
    requests: int  # `auto` requests that decode
    starts: int  # of these, how many get their first token, so they have no block to verify
    rows: int  # tokens that were drafted before the step or are computed in it, of all requests


class Auto:
    """One engine's controller and its measurements."""

    def __init__(self, vllm_config: Any) -> None:
        modes, settings = ServerModes.of(vllm_config), Settings.of(vllm_config)
        self.controller = Controller(
            lengths_up_to(modes.rows),
            vllm_config.scheduler_config.max_num_seqs,
            settings.min_acceptance_length,
            trees=modes.tree_nodes > 0,
        )
        self.forced: int | None = None  # a length to use whatever the load, see `calibrate.py`
        self.times: list[float] = []  # milliseconds of steps with the forced length
        self._length = 1  # of the latest choice
        self._others = [0.0, 0.0]  # rows and tokens per step of all other requests, smoothed
        self._answers = Answers()
        self._blocks: dict[str, tuple[int, int]] = {}  # drafted and accepted tokens of the step's blocks, by request
        self._arrived, self._busy = 0.0, False  # when the latest output arrived, and whether there was more to do
        self._lengths: Counter[int] = Counter()  # choices since the last report
        self._rested = 0  # steps that could rest; one in MEASURED does not
        self._seconds = 0.0  # that the latest measured step took
        self._fallback, self._told = 0.0, 0.0
        self._measured = 0.0  # tokens per second of `auto` requests, smoothed

    def choose(
        self,
        decodings: Collection[Decoding],
        other_rows: int,
        other_tokens: float,
        room: int,
    ) -> None:
        """Choose `length` for the requests of a step.

        decodings: one record per `auto` request that decodes.
        other_rows, other_tokens: what all other requests verify or draft in a step, and the tokens that they get.
        room: the most rows that blocks may take.
        """
        for index, now in enumerate((other_rows, other_tokens)):
            self._others[index] += SMOOTHING * (now - self._others[index])
        self._length = self.forced or self.controller.keep(len(decodings), room) or self._decide(decodings, room)

    def rests(self, requests: int) -> bool:
        """Whether a step is one of those AR steps that are only counted. All its requests are `auto`, one row each."""
        self._rested += 1
        decided = self.forced is None and self._length == 1
        if not decided or self._rested % MEASURED == 0 or not self.controller.rest(requests):
            return False
        self._lengths[1] += 1
        self._fallback += self._seconds * self.controller.fallback
        return True

    def _decide(self, decodings: Collection[Decoding], room: int) -> int:
        limits = Counter(one.nodes + 1 for one in decodings)
        others = round(self._others[0]), self._others[1]
        load = Load(len(decodings), limits, *others, self._answers.starts, self._answers.prompts, room)
        return self.controller.decide(load)

    def step(self, verified: int, requests: int, starts: int, rows: int) -> Step:
        """The record of the step that was just scheduled. `verified`: the length of its `auto` blocks."""
        return Step(time.perf_counter(), not self._busy, verified, self._length, requests, starts, rows)

    @property
    def length(self) -> int:
        """The latest choice."""
        return self._length

    def tokens_of(self, rows: int) -> float:
        """The tokens that a request of another drafting mode gets from a step in which it has this many rows."""
        return self.controller.yields[min(rows, len(self.controller.yields) - 1)]

    def note(self, request_id: str, drafted: int, accepted: int) -> None:
        """Count a block that the step verified."""
        self._blocks[request_id] = drafted, accepted

    def ended(self, prompt: int, tokens: int) -> None:
        """Count an `auto` request that ended: the rows of its prompt that were computed, and the tokens that it got."""
        if self.forced is None:
            self._answers.count(prompt, tokens)

    def finish(self, step: Step | None, busy: bool, outputs: Iterable[Any]) -> None:
        """Count a step whose output has arrived. Drafts that were accepted after a stop yielded nothing.

        busy: there is more to do.
        outputs: vLLM's EngineCoreOutput of each request that got tokens.
        """
        before, now = self._arrived, time.perf_counter()
        self._arrived, self._busy = now, busy
        if step is None or not step.requests:
            self._blocks = {}
            return
        blocks = self._take_blocks(outputs)
        milliseconds = 1e3 * (now - (step.begun if step.resumed else before))
        if self.forced is not None:
            if step.verified == self.forced and not step.starts:
                self.times.append(milliseconds)
            return
        self.controller.verified(*blocks)
        self.controller.took(step.verified, step.requests - step.starts, step.rows, milliseconds)
        self._lengths[step.drafted] += 1
        tokens = step.requests + sum(blocks[1])
        self._measured += SMOOTHING * (1e3 * tokens / milliseconds - self._measured)
        self._seconds = milliseconds / 1e3
        self._watch(self._seconds, now)

    def _take_blocks(self, outputs: Iterable[Any]) -> tuple[list[int], list[int]]:
        """The drafted tokens of the step's blocks, and those of them that requests got."""
        blocks, self._blocks = self._blocks, {}
        if not blocks:
            return [], []
        for output in outputs:
            block, got = blocks.get(output.request_id), len(output.new_token_ids) - 1
            if block is not None and got < block[1]:
                blocks[output.request_id] = block[0], max(got, 0)
        return [drafted for drafted, _ in blocks.values()], [accepted for _, accepted in blocks.values()]

    def _watch(self, seconds: float, now: float) -> None:
        """Add up the time in AR because of poor acceptance, and say so."""
        if not self.controller.fallback:
            return
        self._fallback += seconds
        if now - self._told > QUIET:
            self._told = now
            logger.warning(
                "Requests in mode auto decode as AR: few drafts are accepted (%.2f tokens per round with the shortest "
                "block). Drafting is tried again now and then.",
                self.controller.yields[self.controller.lengths[1]],
            )

    def take(self) -> dict[str, Any] | None:
        """What happened since the last call, in plain types; None if no `auto` request had a step."""
        if not self._lengths:
            return None
        lengths, self._lengths = self._lengths, Counter()
        fallback, self._fallback = self._fallback, 0.0
        return {
            "length": self._length,
            "lengths": dict(lengths),
            "predicted": 1e3 * self.controller.predicted,
            "measured": self._measured,
            "fallback": fallback,
        }
