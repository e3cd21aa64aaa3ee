"""How many drafts of a block are accepted: an estimate from recent blocks that knows what a block cannot tell.

A block of 8 that was accepted whole says nothing about position 12, so each position counts only the blocks that
reached it (the Kaplan-Meier estimate). Positions that no recent block reached get the average of those that were: an
estimate, not a verdict, so longer blocks are not ruled out because short ones were used.

    survival = Tracker(drafts=31)
    survival.observe([7, 7], [7, 2])      # drafted and accepted tokens of a step's blocks
    survival.yields(4)[8]                 # tokens that a round with a block of 8 is expected to yield
"""

from collections.abc import Sequence

import numpy as np

SLOW, FAST = 48, 12  # half-lives, in steps
CHANGED = 0.4  # traffic has changed if the fast estimate differs from the slow one by this share
REJECTION, PRIOR = (
    0.1,
    4.0,
)  # before anything is known: the share of drafts that fail, and how many drafts that is worth
SMOOTHING = 2.0  # how many drafts at the average share each position counts besides its own


class Survival:
    """The estimate for blocks of at most `drafts` drafts."""

    def __init__(self, drafts: int, half_life: float = SLOW) -> None:
        self._decay = 0.5 ** (1 / half_life)
        self._reached = np.zeros(drafts)  # recent blocks that reached each position
        self._rejected = np.zeros(drafts)  # and those that ended there

    def observe(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """Count a step's verified blocks, and let all earlier steps count a little less."""
        most = len(self._reached)
        drafts, kept = np.minimum(drafted, most), np.minimum(accepted, most)
        reached = np.bincount(np.minimum(kept + 1, drafts), minlength=most + 1)  # blocks by how far they came
        self._reached *= self._decay
        self._rejected *= self._decay
        self._reached += reached[::-1].cumsum()[::-1][1:]
        self._rejected += np.bincount(kept[kept < drafts], minlength=most)[:most]

    def forget(self, recent: "Survival") -> None:
        """Know only what another estimate knows, one with a shorter memory."""
        self._reached, self._rejected = recent._reached.copy(), recent._rejected.copy()

    def yields(self) -> list[float]:  # [drafts + 2], by block length; the first entry has no meaning
        """The expected number of tokens of a round, the bonus token included, by block length."""
        average = (self._rejected.sum() + REJECTION * PRIOR) / (self._reached.sum() + PRIOR)
        rejection = (self._rejected + average * SMOOTHING) / (self._reached + SMOOTHING)
        return [0.0, 1.0, *(1 + (1 - rejection).cumprod().cumsum()).tolist()]


class Tracker:
    """An estimate that is steady while traffic is, and quick to follow when traffic changes."""

    def __init__(self, drafts: int) -> None:
        self._slow, self._fast = Survival(drafts, SLOW), Survival(drafts, FAST)

    def observe(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """Count a step's verified blocks."""
        self._slow.observe(drafted, accepted)
        self._fast.observe(drafted, accepted)

    def yields(self, length: int) -> list[float]:  # [drafts + 2], by block length
        """See `Survival.yields`. `length`: the block length that decides whether traffic has changed."""
        slow, fast = self._slow.yields(), self._fast.yields()
        if abs(fast[length] - slow[length]) <= CHANGED * slow[length]:
            return slow
        self._slow.forget(self._fast)
        return fast


def usual_yields(drafts: int) -> list[float]:
    """The yields before anything is known."""
    return Survival(drafts).yields()
