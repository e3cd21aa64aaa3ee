"""How many drafts of a block are accepted: an estimate from recent blocks that knows what a block cannot tell.

A chain of 8 that was accepted whole says nothing about position 12, so each position counts only the chains that
reached it (the Kaplan-Meier estimate). Positions that no recent chain reached get the average of those that were: an
estimate, not a verdict, so longer blocks are not ruled out because short ones were used. A block of 32 that yields 20
tokens would have been three blocks of 8: texts that are easy to draft take more of the short rounds than of the long
ones, which the survival curve alone does not see, so blocks are counted as rounds of each shorter length as well. The
path through a tree tells nothing about trees of another size, so each size has an average of its own, see `TreeYields`.

    survival = Tracker(partial(Survival, 31))
    survival.observe([7, 7], [7, 2])      # drafted and accepted tokens of a step's blocks
    survival.yields(4)[8]                 # tokens that a round with a block of 8 is expected to yield
"""

from collections.abc import Callable, Sequence

import numpy as np

SLOW, FAST = 48, 12  # half-lives, in steps
CHANGED = 0.2  # traffic has changed if the fast estimate differs from the slow one by this share
SURE = 4.0  # and by so many standard deviations; of trees, which have none, by twice the share
KEPT = 0.1  # how much the fast estimate's blocks, which are partly from before the change, count then
REJECTION, PRIOR = (
    0.1,
    4.0,
)  # before anything is known: the share of drafts that fail, and how many drafts that is worth
ROUNDS = 8.0  # as many rounds of a length as the survival curve is worth
MOST_EASIER = 1.05  # times as many tokens as by the survival curve
SMOOTHING = 2.0  # how many drafts at the average share each position counts besides its own


class Survival:
    """The estimate for chains of at most `drafts` drafts."""

    def __init__(self, drafts: int, half_life: float = SLOW) -> None:
        self._decay = 0.5 ** (1 / half_life)
        # By position: recent blocks that reached it, and that ended there. By length: their tokens, and how many rounds
        # these would have taken, of blocks that were at least as long.
        self._counts = np.zeros((4, drafts))

    def observe(self, drafted: Sequence[int], accepted: Sequence[int], steps: int = 1) -> None:
        """Count the verified blocks of some steps, and let all earlier ones count a little less."""
        self.add(self.counted(drafted, accepted), steps)

    def counted(self, drafted: Sequence[int], accepted: Sequence[int]) -> np.ndarray:
        """What a step's blocks add to an estimate of this kind."""
        return counted(drafted, accepted, self._counts.shape[1])

    def add(self, counts: np.ndarray, steps: int) -> None:
        """Count what `counted` found in the blocks of some steps."""
        self._counts *= self._decay**steps
        self._counts += counts

    def forget(self, recent: "Survival") -> None:
        """Know only what an estimate with a shorter memory knows, and soon believe what comes next."""
        self._counts = KEPT * recent._counts

    def differs(self, recent: "Survival", length: int) -> bool:
        """Whether traffic has changed, by an estimate with a shorter memory and the block length to look at."""
        slow, fast = self._curve(length)[-1], recent._curve(length)[-1]
        if abs(fast - slow) <= CHANGED * slow:
            return False
        (reached, rejected), (tried, failed) = (one._counts[:2, : length - 1].sum(axis=1) for one in (self, recent))
        share = (rejected + REJECTION * PRIOR) / (reached + PRIOR)
        # With weights that fade, a sum has half the variance of a count.
        return bool(abs(failed - share * tried) > SURE * np.sqrt(tried * share * (1 - share) / 2))

    def yields(self) -> list[float]:  # [length + 1], by block length; the first means nothing
        """The expected number of tokens of a round, the bonus token included, by block length."""
        _, _, tokens, rounds = self._counts
        curve = self._curve()
        # What was easy to draft took many rounds, which would hide for long that it isn't now.
        yields = np.minimum((tokens + ROUNDS * curve) / (rounds + ROUNDS), MOST_EASIER * curve)
        return [0.0, 1.0, *np.maximum.accumulate(yields).tolist()]

    def _curve(self, length: int | None = None) -> np.ndarray:  # for block lengths from 2 up to the given one
        all_reached, all_rejected = self._counts[:2].sum(axis=1).tolist()
        average = (all_rejected + REJECTION * PRIOR) / (all_reached + PRIOR)
        reached, rejected = self._counts[:2] if length is None else self._counts[:2, : length - 1]
        kept = 1 - (rejected + average * SMOOTHING) / (reached + SMOOTHING)
        return 1 + kept.cumprod().cumsum()


class TreeYields(Survival):
    """The estimate for trees, or chains, with these numbers of rows: the anchor's and one for each node.

    A size that has not been used lately is expected to differ from the usual as much as those that have been.
    """

    def __init__(self, lengths: Sequence[int], half_life: float = SLOW) -> None:
        super().__init__(len(lengths), half_life)
        self._counts = self._counts[:2]  # blocks, and their accepted drafts, by size
        self._lengths = np.array(lengths)
        self._usual = np.array(usual_yields(lengths[-1] - 1))[self._lengths] - 1

    def counted(self, drafted: Sequence[int], accepted: Sequence[int]) -> np.ndarray:  # [2, lengths]
        size = np.searchsorted(self._lengths, np.array(drafted) + 1).clip(max=len(self._lengths) - 1)
        return np.array([np.bincount(size, weights, len(self._lengths)) for weights in (np.ones(len(size)), accepted)])

    def differs(self, recent: Survival, length: int) -> bool:
        slow, fast = self.yields()[length], recent.yields()[length]
        return abs(fast - slow) > 2 * CHANGED * slow

    def yields(self) -> list[float]:  # by number of rows, up to the largest
        blocks, accepted = self._counts
        prior = PRIOR * self._usual.mean()
        common = (accepted.sum() + prior) / (blocks @ self._usual + prior) * self._usual
        own = np.maximum.accumulate(1 + (accepted + PRIOR * common) / (blocks + PRIOR))
        rows = np.arange(self._lengths[-1] + 1)
        return [0.0, *np.interp(rows[1:], self._lengths, own).tolist()]


def counted(drafted: Sequence[int], accepted: Sequence[int], most: int) -> np.ndarray:  # [4, most]
    """Blocks that reached each position, and that were rejected there; for each length, tokens and rounds.

    The first length is 2. Blocks that are shorter than a length say nothing about its rounds.
    """
    drafts, kept = np.array(drafted), np.array(accepted)
    reached = np.bincount(np.minimum(kept + 1, drafts), minlength=most + 1)  # blocks by how far they came
    rejected = np.bincount(kept, kept < drafts, minlength=most)  # a block that was accepted whole is not counted
    lengths = np.arange(2, most + 2)
    told = lengths <= drafts[:, None] + 1
    tokens = (kept + 1) @ told
    rounds = (-(-(kept[:, None] + 1) // lengths) * told).sum(axis=0)
    return np.array([reached[:0:-1].cumsum()[::-1], rejected[:most], tokens, rounds])


class Tracker:
    """An estimate that is steady while traffic is, and quick to follow when traffic changes."""

    def __init__(self, kind: Callable[[float], Survival]) -> None:
        """kind: makes an estimate with the given half-life."""
        self._slow, self._fast = kind(SLOW), kind(FAST)

    def observe(self, drafted: Sequence[int], accepted: Sequence[int], steps: int = 1) -> None:
        """Count the verified blocks of some steps."""
        counts = self._slow.counted(drafted, accepted)
        self._slow.add(counts, steps)
        self._fast.add(counts, steps)

    def yields(self, length: int) -> list[float]:  # by block length
        """See `Survival.yields`. `length`: the block length that decides whether traffic has changed."""
        if self._slow.differs(self._fast, length):
            self._slow.forget(self._fast)
        return self._slow.yields()


def usual_yields(drafts: int) -> list[float]:
    """The yields before anything is known."""
    return Survival(drafts).yields()
