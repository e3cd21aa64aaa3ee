"""How many drafts of a block are accepted: survival curves, the share of blocks accepted up to each position.

    acceptance = read("6.82", block=32)             # tokens per round with blocks of 32; every position is as likely
    acceptance = read("curves.json", block=32)      # {"code": [0.98, 0.95, ...], "chat": [...]}, or one list
    acceptance = read("http://localhost:8000/metrics", block=32)
    acceptance.draw("code", drafts=31, luck=0.3)    # of 31 drafts, those that a block with this luck keeps

One curve serves every block length, because a shorter block hardly changes its earlier positions.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ANY = "all"  # the name of the curve for requests of no kind that has its own
DRAFTS = "vllm:spec_decode_num_drafts_total"
PER_POSITION = "vllm:spec_decode_num_accepted_tokens_per_pos_total"


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Survival curves by kind of request. Raises ValueError for a curve that isn't one."""

    curves: Mapping[str, Sequence[float]]
    _negative: dict[str, list[float]] = field(default_factory=dict, init=False, repr=False)  # ascending, for bisect

    def __post_init__(self) -> None:
        for kind, curve in self.curves.items():
            falls = all(after <= before + 1e-9 for before, after in zip([1.0, *curve], curve, strict=False))
            if not curve or not falls or curve[-1] < 0:
                raise ValueError(f"acceptance {kind!r} must be shares in [0, 1] that never rise, not {list(curve)}")
            self._negative[kind] = [-share for share in curve]
        if ANY not in self._negative:
            raise ValueError(f"acceptance needs a curve {ANY!r} for requests of other kinds than {list(self.curves)}")

    def draw(self, kind: str, drafts: int, luck: float) -> int:
        """Accepted drafts of a block. luck: uniform in [0, 1); less is better. Unknown positions are rejected."""
        curve = self._negative.get(kind) or self._negative[ANY]
        return bisect_left(curve, -luck, 0, min(drafts, len(curve)))

    def tokens(self, block: int) -> float:
        """Expected tokens per round with blocks of this length, bonus token included."""
        return yields(np.array(self.curves[ANY]), block)


def read(text: str, block: int) -> Acceptance:
    """Acceptance from a number, a JSON file, or a server's metrics: a URL or a saved file. Raises ValueError."""
    try:
        length = float(text)
    except ValueError:
        return from_counters(fetch(text)) if is_metrics(text) else from_file(Path(text))
    if not 1 < length < block:
        raise ValueError(f"acceptance length {text} must lie between 1 and the block length, {block}")
    return Acceptance({ANY: survival_curve({block: length}).tolist()})


def is_metrics(text: str) -> bool:
    return text.startswith(("http://", "https://")) or text.endswith((".prom", ".txt"))


def fetch(where: str) -> str:
    """The text of a metrics page or file."""
    import urllib.request

    try:
        if not where.startswith("http"):
            return Path(where).read_text(encoding="utf-8")
        with urllib.request.urlopen(where, timeout=10) as page:
            return str(page.read().decode())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"acceptance: {where} cannot be read ({error})") from None


def from_file(file: Path) -> Acceptance:
    """Curves from JSON: one list, or lists by kind of request. Without a list "all", the mean serves other kinds."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        curves = {ANY: found} if isinstance(found, list) else dict(found)
        curves = {kind: [float(share) for share in curve] for kind, curve in curves.items()}
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"acceptance: {file} is neither a number, nor a metrics URL, nor JSON with a list per kind ({error})"
        ) from None
    if curves and ANY not in curves:
        longest = max(map(len, curves.values()))
        padded = [[*curve, *[0.0] * (longest - len(curve))] for curve in curves.values()]
        curves[ANY] = np.mean(padded, axis=0).tolist()
    return Acceptance(curves)


def from_counters(text: str) -> Acceptance:
    """A server's acceptance by position, from vLLM's counters.

    It is that of the blocks which the server drafted: let it draft blocks of the full length (mode `linear`), because
    short blocks say nothing about later positions.
    """
    drafts, accepted = 0.0, dict[int, float]()
    for name, labels, value in samples(text):
        if name == DRAFTS:
            drafts += value
        elif name == PER_POSITION and (position := re.search(r'position="(\d+)"', labels)):
            accepted[int(position[1])] = accepted.get(int(position[1]), 0.0) + value
    if not drafts or not accepted:
        raise ValueError(f"acceptance: the metrics have no {DRAFTS} and {PER_POSITION}: has the server drafted yet?")
    shares = [accepted.get(position, 0.0) / drafts for position in range(max(accepted) + 1)]
    return Acceptance({ANY: shares})


def samples(text: str) -> Iterable[tuple[str, str, float]]:
    """Name, labels and value of each line of a metrics page."""
    for line in text.splitlines():
        if found := re.match(r"([a-zA-Z_:][\w:]*)(\{.*\})?\s+(\S+)", line):
            yield found[1], found[2] or "", float(found[3])


def survival_curve(published: Mapping[int, float]) -> np.ndarray:  # [longest - 1]
    """The share of blocks accepted up to each position: a constant rejection rate between published block lengths.

    published: tokens per round by block length, shortest first.
    """
    curve: list[float] = []
    for length, target in published.items():
        places = length - 1 - len(curve)
        before, total = curve[-1] if curve else 1.0, 1 + sum(curve)
        low, high = 0.0, 1.0
        for _ in range(60):
            keep = (low + high) / 2
            found = total + sum(before * keep ** (place + 1) for place in range(places))
            low, high = (keep, high) if found < target else (low, keep)
        curve += [before * low ** (place + 1) for place in range(places)]
    return np.array(curve)


def yields(survival: np.ndarray, length: int) -> float:
    """Expected tokens of a round."""
    return 1 + float(survival[: length - 1].sum())
