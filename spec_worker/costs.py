"""What a step takes, in milliseconds, by block length and number of requests: measured at start-up, corrected since.

    costs = Costs(lengths=(1, 4, 8, 16, 32), most=64)
    costs.calibrate(8, 16, 7.1)            # 16 requests with blocks of 8, see `calibrate.py`
    costs.observe(8, 16, 256, 7.4)         # a real step with 256 rows: verified and drafted tokens
    costs.of(16)                           # milliseconds for 16 requests, for each of the lengths

A round verifies one block per request and drafts the next one, so its cost depends on both numbers, not only on their
product. Between measured numbers of requests it is interpolated; beyond them it grows by the row.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

LEAST_RATE = 0.05  # weight of a new observation in a correction, once there are many
MOST_RATE = 0.25  # and if there has been none for a long time
FEW, UNKNOWN = 3, 100.0  # the first few observations of an entry may change it this many times
MOST_CHANGE = 2.0  # later, an observation counts as at most this many times as slow or fast as expected
REFRESH = 32  # observations between updates of everything
IMPURE = 0.5  # a step with more than this share of other rows says nothing about its blocks


class Costs:
    """Milliseconds per step. Without calibration: a guess, which observations replace."""

    def __init__(self, lengths: Sequence[int], most: int) -> None:
        self.lengths = tuple(lengths)
        self._sizes = [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
        self._measured: list[dict[int, float]] = [{} for _ in lengths]  # ratio to the guess, by number of requests
        # By length and size, in plain numbers, which a step updates faster than an array.
        self._base = [[guess(length, size) for size in self._sizes] for length in lengths]
        self._factor = [[1.0] * len(self._sizes) for _ in lengths]
        self._seen = [[0] * len(self._sizes) for _ in lengths]
        self._latest = [[0] * len(self._sizes) for _ in lengths]  # the number of each entry's latest observation
        self._counts = np.arange(most + 1)
        self._table = np.zeros((len(lengths), most + 1))
        self._outdated: set[int] = set()  # rows of the table
        self._observations = 0
        self.per_row = 0.0
        self._refresh()

    def calibrate(self, length: int, requests: int, milliseconds: float) -> None:
        """Set what a step takes. Between measurements, and beyond them, their ratio to the guess is interpolated."""
        self._measured[self.lengths.index(length)][requests] = milliseconds / guess(length, requests)
        for row in range(len(self.lengths)):
            near = next(known for known in (*self._measured[row::-1], *self._measured) if known)
            sizes = sorted(near)
            ratio = np.interp(np.log(self._sizes), np.log(sizes), [near[size] for size in sizes])
            expected = ratio * [guess(self.lengths[row], size) for size in self._sizes]
            self._base[row] = np.maximum.accumulate(expected).tolist()
        self._refresh()

    def of(self, requests: int) -> list[float]:
        """Milliseconds of a step in which this many requests have blocks, for each length."""
        for row in self._outdated:
            self._table[row] = np.interp(self._counts, self._sizes, np.multiply(self._base[row], self._factor[row]))
        self._outdated.clear()
        found: list[float] = self._table[:, min(requests, self._table.shape[1] - 1)].tolist()
        return found

    def observe(self, length: int, requests: int, rows: int, milliseconds: float) -> None:
        """Correct an entry. `rows`: tokens that the step verified or drafted, of all requests."""
        extra = rows - requests * rows_per_request(length)
        if abs(extra) > IMPURE * rows or not requests:
            return
        row = self.lengths.index(length)
        size = min(round(math.log2(requests)), len(self._sizes) - 1)
        own = self._own(row, requests)
        expected = max(own + extra * self.per_row, 1e-6)
        self._seen[row][size] += 1
        seen = self._seen[row][size]
        most = MOST_CHANGE if seen > FEW else UNKNOWN
        change = min(max(milliseconds / expected, 1 / most), most)
        self._observations += 1
        age, self._latest[row][size] = self._observations - self._latest[row][size], self._observations
        faded = min(1 - (1 - LEAST_RATE) ** age, MOST_RATE)  # the machine may have changed meanwhile
        self._factor[row][size] *= change ** max(faded, 1 / (1 + seen))
        if seen <= FEW or self._observations % REFRESH == 0:
            self._refresh()  # unconfirmed entries follow the mean of the confirmed ones
        else:
            self._outdated.add(row)

    def _own(self, row: int, requests: int) -> float:
        """An entry of the table as it is now, whether or not it is outdated."""
        right = bisect_left(self._sizes, requests, hi=len(self._sizes) - 1)
        left = max(right - 1, 0)
        low, high = (self._base[row][at] * self._factor[row][at] for at in (left, right))
        share = (requests - self._sizes[left]) / max(self._sizes[right] - self._sizes[left], 1)
        return low + min(share, 1.0) * (high - low)

    @staticmethod
    def _unconfirmed(base: np.ndarray, factor: np.ndarray, known: np.ndarray) -> np.ndarray | float:
        """The correction of entries that no step has confirmed: as many times or as many milliseconds as the others.

        The mean of the entries that have been confirmed, whichever adds less: a length that is thought too cheap is
        tried, and one that is thought too dear might never be. Steps that are faster than expected are so by a factor.
        """
        if not known.any():
            return 1.0
        times, more = factor[known].mean(), (base[known] * (factor[known] - 1)).mean()
        return np.minimum(times, 1 + max(more, 0.0) / base) if times > 1 else times

    def _refresh(self) -> None:
        base, factor, known = np.array(self._base), np.array(self._factor), np.array(self._seen) > 0
        factor = np.where(known, factor, self._unconfirmed(base, factor, known))
        self._factor = factor.tolist()
        self._outdated.clear()
        corrected = base * factor
        for row, values in enumerate(corrected):
            self._table[row] = np.interp(self._counts, self._sizes, values)
        most = self._sizes[-1]
        added = most * (rows_per_request(self.lengths[-1]) - rows_per_request(self.lengths[0]))
        self.per_row = max(0.0, float(corrected[-1, -1] - corrected[0, -1])) / added if added else 0.0


def rows_per_request(length: int) -> int:
    """The tokens of a request's round: a block to verify and a block to draft."""
    return 1 if length == 1 else 2 * length


def guess(length: int, requests: int) -> float:
    """A round without any measurement: two forwards, in which a row costs a fiftieth of the rest."""
    rows = rows_per_request(length) * requests
    return (1.0 if length == 1 else 2.0) + rows / 50
