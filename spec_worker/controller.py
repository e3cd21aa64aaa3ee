"""Chooses the block length of `auto` requests, step by step: the one that yields the most tokens per second.

    tokens of a step        requests x tokens that a round yields, see `survival.py` and `over_answers`
    milliseconds of a step  see `costs.py`

All `auto` requests of a step get the same length; 1 means AR. A longer block is cut to a request's own limit. On a
server with draft trees, the length is the number of a tree's rows: its anchor's and one for each node. The choice
changes only for a gain that lasts, and lengths next to it are tried now and then, at a bounded cost, because only use
tells what they yield and take. Without a clock, without torch: the caller times steps and counts blocks.

    controller = Controller((1, 4, 8, 16, 32), most_requests=64)
    length = controller.choose(Load(16, {32: 16}))
    controller.verified([7] * 16, accepted)              # blocks of a step that ended
    controller.took(length, requests=16, rows=256, milliseconds=7.4)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from spec_worker.costs import Costs
from spec_worker.survival import Survival, Tracker, TreeYields, usual_yields

LENGTHS = (1, 4, 8, 16, 32)
APART = 1.25  # lengths that differ by less are not worth a choice, and graphs of their own
GAIN = 1.05  # another length that is this much better is taken
PATIENCE = 3  # after this many steps in a row; after more of them if it is less better
OTHER_LOAD = 2  # times as many requests, or as few, ask for another choice at once
FADE = 0.98  # what an answer counts in the average length of answers, compared with the next one
USUAL = 256  # tokens per answer, before anything is known
WAITING_SHARE = 4  # if requests wait, blocks of `auto` requests leave a quarter of a step's budget for prompts
BLOCKS = 4  # few requests decide once in so many blocks: their steps are short, and a decision takes time
MANY = 32  # many requests decide once in 1 + requests // MANY steps, because each step tells more
AR_STEPS = 16  # AR is decided on once in so many steps: they are short, and tell nothing of blocks
SIMILAR = 8  # a decision holds while the number of requests changes by at most this part of it
TRIAL_SHARE = 0.0075  # of the time that trials may cost
TRIAL_GAP = 16  # steps between trials, at least


@dataclass(frozen=True, slots=True)
class Load:
    """The requests of a step.

    requests: `auto` requests that decode.
    limits: how many of them have each block length as their own limit.
    rows: tokens that all other requests verify or draft, their prompts included.
    tokens: tokens that all other requests get.
    starts: how many `auto` requests start per token that they get, the inverse of an answer's length.
    prompts: how many tokens of prompts they have per token that they get.
    room: the most rows that blocks may take; None: no limit.
    """

    requests: int
    limits: Mapping[int, int] = field(default_factory=dict)
    rows: int = 0
    tokens: float = 0
    starts: float = 0
    prompts: float = 0
    room: int | None = None


@dataclass(slots=True)
class Answers:
    """How long the answers of `auto` requests are, and their prompts: of those that ended lately."""

    ended: float = 0.0
    prompted: float = 0.0  # tokens of their prompts that were computed
    yielded: float = 0.0  # tokens that they got

    def count(self, prompt: int, tokens: int) -> None:
        """Count an answer that has ended: rows of its prompt, and its length."""
        self.ended = FADE * self.ended + 1
        self.prompted, self.yielded = FADE * self.prompted + prompt, FADE * self.yielded + tokens

    @property
    def starts(self) -> float:
        """See `Load.starts`."""
        return (1 + self.ended) / (USUAL + self.yielded)

    @property
    def prompts(self) -> float:
        """See `Load.prompts`."""
        return self.prompted / (USUAL + self.yielded)


def over_answers(yielded: float, load: Load) -> float:
    """The tokens of a round on average, if every answer also has a step that yields one token: that of its prompt.

    Such a step takes as long as a round, because it is one for the other requests, if there are any. So short answers
    gain less from long blocks: one of N tokens takes N / y + 1 steps.
    """
    others = 1 - 1 / load.requests if load.requests else 0.0
    return yielded / (1 + yielded * load.starts * others)


def lengths_up_to(longest: int) -> tuple[int, ...]:
    """The block lengths to choose from on a server with blocks of at most `longest`."""
    return (*(length for length in LENGTHS if length == 1 or APART * length <= longest), longest)


class Controller:
    """Chooses for one engine."""

    def __init__(
        self, lengths: Sequence[int], most_requests: int, least_yield: float = 0.0, trees: bool = False
    ) -> None:
        """least_yield: an operator's floor; a length that yields fewer tokens per round is not used."""
        self.lengths = tuple(lengths)
        self.costs = Costs(self.lengths, most_requests)
        kind = partial(TreeYields, self.lengths) if trees else partial(Survival, self.lengths[-1] - 1)
        self.survival = Tracker(kind)
        self.yields = usual_yields(self.lengths[-1] - 1)
        self.predicted = 0.0  # tokens per millisecond of the choice
        self.fallback = False  # AR because drafts are rejected more often than usual
        self._usual = self.yields
        self._least_yield = least_yield
        self._current: int | None = None  # index of the choice
        self._settled = 0  # how many requests there were when it was chosen
        self._missed = 0.0  # what another length would have gained, as a share of a step, since it became the best
        self._trial = 0  # index of the length on trial
        self._again = False  # the trial went well, so it is repeated
        self._credit = 0.0  # milliseconds that trials may cost, since the choice became AR if it is,
        self._charged = 0.0  # and that the latest one was expected to cost
        self._latest = 0.0  # milliseconds of the latest step
        self._load = Load(0)  # the latest
        self._used = [0] * len(self.lengths)  # the step in which each length was last used
        self._step = 0
        self._decided, self._due = 0, 0  # the step of the latest decision, and of the next one
        self._kept = self.lengths[0]  # what is used between decisions
        self._blocks: tuple[list[int], list[int]] = ([], [])  # drafted and accepted tokens since the latest decision
        self._rounds = 0  # steps that verified them

    def choose(self, load: Load) -> int:
        """The block length of the next drafts."""
        kept = self.keep(load.requests, load.room)
        return self.decide(load) if kept is None else kept

    def keep(self, requests: int, room: int | None) -> int | None:
        """Begin a step. Returns the block length of the latest decision, or None if it no longer holds."""
        self._step += 1
        holds = self._holds(requests)
        return self._kept if holds and (room is None or requests * self._kept <= room) else None

    def rest(self, requests: int) -> bool:
        """Begin a step that is not timed, if AR goes on as decided. It is taken to last as long as the latest one."""
        if self._kept != 1 or not self._holds(requests, 1):
            return False
        self._step += 1
        self._credit += TRIAL_SHARE * self._latest
        return True

    def _holds(self, requests: int, steps: int = 0) -> bool:
        """Whether the latest decision does, in so many steps from now."""
        before = self._load.requests
        return self._step + steps < self._due and SIMILAR * abs(requests - before) <= before

    def decide(self, load: Load) -> int:
        """The block length of the step's drafts, by what is known now."""
        steps, self._decided = self._step - self._decided, self._step
        self._load = load
        self._learn()
        rates = self._rates(load, self.yields)
        best = max(range(len(rates)), key=rates.__getitem__)
        self._settle(best, rates, steps)
        assert self._current is not None
        index = self._current if rates[self._current] else best  # if there is no room for the choice
        self._kept = self.lengths[index]
        self._due = self._step + self._pause(load)
        self.predicted = rates[index]
        self.fallback = self._current == 0 and self._usually_drafts(load)
        if index == self._current:
            index = self._on_trial(load, rates)
        self._used[index] = self._step
        return self.lengths[index]

    def _pause(self, load: Load) -> int:
        """Steps until the next decision, if nothing happens."""
        roomy = load.room is None or load.requests * self.lengths[1] <= load.room
        usual = max(BLOCKS // max(load.requests, 1), 1 + load.requests // MANY)
        return max(usual, AR_STEPS) if self._current == 0 and roomy else usual

    def verified(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """Count the blocks that a step verified, and repeat a trial that went well."""
        if not drafted:
            return
        self._rounds += 1
        self._blocks[0].extend(drafted)
        self._blocks[1].extend(accepted)
        length = self.lengths[self._trial]
        if self._current is not None and self._trial > self._current and max(drafted) == length - 1:
            count = len(drafted)
            found = count * over_answers(1 + sum(accepted) / count, self._load)
            prompts = found * self._load.prompts * self.costs.per_row
            self._again = found > self.predicted * (self.costs.of(count)[self._trial] + prompts)
            if self._again:
                self._due = 0
                self._credit += self._charged  # because it cost nothing
                self._charged = 0.0

    def _learn(self) -> None:
        """Update the yields with the blocks of the latest steps."""
        if self._rounds:
            self.survival.observe(*self._blocks, self._rounds)
            self.yields = self.survival.yields(self.lengths[1])
            self._blocks, self._rounds = ([], []), 0

    def took(self, length: int, requests: int, rows: int, milliseconds: float) -> None:
        """Count a step's time.

        length, requests: the blocks that it verified, and how many requests had one.
        rows: tokens that were drafted and computed, of all requests.
        """
        self._latest = milliseconds
        self._credit += TRIAL_SHARE * milliseconds
        self.costs.observe(length, requests, rows, milliseconds)

    def _rates(self, load: Load, yields: Sequence[float]) -> list[float]:
        """Tokens per millisecond for each length; 0 if there is no room for it, or it yields too little."""
        rates: list[float] = []
        others, longest = load.rows * self.costs.per_row, max(load.limits, default=self.lengths[-1])
        for shorter, length, cost in zip((0, *self.lengths), self.lengths, self.costs.of(load.requests), strict=False):
            usable = length == 1 or (
                shorter < longest  # no request could use more
                and (load.room is None or load.requests * length <= load.room)
                and yields[length] >= min(self._least_yield, length)
            )
            tokens = self._tokens(load, length, yields)
            prompts = tokens * load.prompts * self.costs.per_row
            rates.append((tokens + load.tokens) / (cost + prompts + others) if usable else 0.0)
        return rates

    @staticmethod
    def _tokens(load: Load, length: int, yields: Sequence[float]) -> float:
        limits = load.limits or {length: load.requests}
        return sum(count * over_answers(yields[min(length, limit)], load) for limit, count in limits.items())

    def _usually_drafts(self, load: Load) -> bool:
        """Whether drafting would pay at this load if drafts were accepted as often as usual."""
        rates = self._rates(load, self._usual)
        return max(rates) > GAIN * rates[0]

    def _settle(self, best: int, rates: Sequence[float], steps: int) -> None:
        """Change the choice if others have been better for long enough, or at once if the load is another one."""
        requests, settled = self._load.requests, self._settled
        if self._current is None or max(requests, settled) >= OTHER_LOAD * min(requests, settled):
            self._change(best)
        elif best == self._current or not rates[self._current]:
            self._missed = 0.0
        else:
            self._missed += steps * (min(rates[best] / rates[self._current], GAIN) - 1)
            if self._missed >= PATIENCE * (GAIN - 1):
                self._change(best)

    def _change(self, index: int) -> None:
        if index == 0 != self._current:
            self._credit = 0.0  # trials cost little until now, and cost much from here on
        self._current, self._missed, self._settled = index, 0.0, self._load.requests

    def _on_trial(self, load: Load, rates: Sequence[float]) -> int:
        """The index to use in this step: the choice, or a length next to it."""
        assert self._current is not None
        around = [i for i in (self._current - 1, self._current + 1) if 0 <= i < len(rates) and rates[i]]
        if not around:
            return self._current
        again, self._again = self._again and self._trial in around, False
        if not again:
            self._trial = min(around, key=self._used.__getitem__)
        loss = max(self._loss(load, rates), 0.0)
        due = self._credit >= loss and self._step - max(self._used[i] for i in around) >= TRIAL_GAP
        if not (again or due):
            return self._current
        self._credit -= loss
        self._charged = loss
        return self._trial

    def _loss(self, load: Load, rates: Sequence[float]) -> float:
        """Milliseconds that a step with the length on trial wastes."""
        assert self._current is not None
        cost = self.costs.of(load.requests)[self._trial] + load.rows * self.costs.per_row
        return cost * (1 - rates[self._trial] / max(rates[self._current], 1e-9))
