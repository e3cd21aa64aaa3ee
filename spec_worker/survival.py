"""How many drafts of a block are accepted: an estimate from recent blocks that knows what a block cannot tell.

A chain of 8 that was accepted whole says nothing about position 12, so each position counts only the chains that
reached it (the Kaplan-Meier estimate). Positions that no recent chain reached get the average of those that were: an
estimate, not a verdict, so longer blocks are not ruled out because short ones were used. The path through a tree tells
nothing about trees of another size, so each size has an average of its own, see `TreeYields`.

    survival = Tracker(partial(Survival, 31))
    survival.observe([7, 7], [7, 2])      # drafted and accepted tokens of a step's blocks
    survival.yields(4)[8]                 # tokens that a round with a block of 8 is expected to yield
"""

from collections.abc import Callable, Sequence

import numpy as np

SLOW, FAST = 48, 12  # half-lives, in steps
CHANGED = 0.4  # traffic has changed if the fast estimate differs from the slow one by this share
REJECTION, PRIOR = (
    0.1,
    4.0,
)  # before anything is known: the share of drafts that fail, and how many drafts that is worth
SMOOTHING = 2.0  # how many drafts at the average share each position counts besides its own


class Survival:
    """The estimate for chains of at most `drafts` drafts."""

    def __init__(self, drafts: int, half_life: float = SLOW) -> None:
        self._decay = 0.5 ** (1 / half_life)
        self._counts = np.zeros((2, drafts))  # recent blocks that reached each position, and that ended there

    def observe(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """Count a step's verified blocks, and let all earlier steps count a little less."""
        self.add(self.counted(drafted, accepted))

    def counted(self, drafted: Sequence[int], accepted: Sequence[int]) -> np.ndarray:
        """What a step's blocks add to an estimate of this kind."""
        return counted(drafted, accepted, self._counts.shape[1])

    def add(self, counts: np.ndarray) -> None:
        """Count what `counted` found in a step's blocks."""
        self._counts *= self._decay
        self._counts += counts

    def forget(self, recent: "Survival") -> None:
        """Know only what another estimate knows, one with a shorter memory."""
        self._counts = recent._counts.copy()

    def yields(
        self, length: int | None = None
    ) -> list[float]:  # [length + 1], by block length; the first means nothing
        """The expected number of tokens of a round, the bonus token included, by block length up to the given one."""
        all_reached, all_rejected = self._counts.sum(axis=1).tolist()
        average = (all_rejected + REJECTION * PRIOR) / (all_reached + PRIOR)
        reached, rejected = self._counts if length is None else self._counts[:, : length - 1]
        kept = 1 - (rejected + average * SMOOTHING) / (reached + SMOOTHING)
        return [0.0, 1.0, *(1 + kept.cumprod().cumsum()).tolist()]


class TreeYields(Survival):
    """The estimate for trees, or chains, with these numbers of rows: the anchor's and one for each node.

    A size that has not been used lately is expected to differ from the usual as much as those that have been.
    """

    def __init__(self, lengths: Sequence[int], half_life: float = SLOW) -> None:
        super().__init__(len(lengths), half_life)  # blocks, and their accepted drafts, by size
        self._lengths = np.array(lengths)
        self._usual = np.array(usual_yields(lengths[-1] - 1))[self._lengths] - 1

    def counted(self, drafted: Sequence[int], accepted: Sequence[int]) -> np.ndarray:  # [2, lengths]
        size = np.searchsorted(self._lengths, np.array(drafted) + 1).clip(max=len(self._lengths) - 1)
        return np.array([np.bincount(size, weights, len(self._lengths)) for weights in (np.ones(len(size)), accepted)])

    def yields(self, length: int | None = None) -> list[float]:  # by number of rows, up to the largest
        blocks, accepted = self._counts
        prior = PRIOR * self._usual.mean()
        common = (accepted.sum() + prior) / (blocks @ self._usual + prior) * self._usual
        own = np.maximum.accumulate(1 + (accepted + PRIOR * common) / (blocks + PRIOR))
        rows = np.arange(self._lengths[-1] + 1)
        return [0.0, *np.interp(rows[1:], self._lengths, own).tolist()]


def counted(drafted: Sequence[int], accepted: Sequence[int], most: int) -> np.ndarray:  # [2, most]
    """How many blocks reached each position, and how many were rejected there."""
    drafts, kept = np.array(drafted), np.array(accepted)
    reached = np.bincount(np.minimum(kept + 1, drafts), minlength=most + 1)  # blocks by how far they came
    rejected = np.bincount(kept, kept < drafts, minlength=most)  # a block that was accepted whole is not counted
    return np.array([reached[:0:-1].cumsum()[::-1], rejected[:most]])


class Tracker:
    """An estimate that is steady while traffic is, and quick to follow when traffic changes."""

    def __init__(self, kind: Callable[[float], Survival]) -> None:
        """kind: makes an estimate with the given half-life."""
        self._slow, self._fast = kind(SLOW), kind(FAST)

    def observe(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """Count a step's verified blocks."""
        counts = self._slow.counted(drafted, accepted)
        self._slow.add(counts)
        self._fast.add(counts)

    def yields(self, length: int) -> list[float]:  # by block length
        """See `Survival.yields`. `length`: the block length that decides whether traffic has changed."""
        slow, fast = self._slow.yields(), self._fast.yields(length)[length]
        if abs(fast - slow[length]) <= CHANGED * slow[length]:
            return slow
        self._slow.forget(self._fast)
        return self._slow.yields()


def usual_yields(drafts: int) -> list[float]:
    """The yields before anything is known."""
    return Survival(drafts).yields()
