"""What a server counted, from its /metrics: forwards, drafts and acceptance, over all modes or for one.

    before = scrape(url)
    ...                                 # only our requests run meanwhile
    counts = scrape(url) - before
    counts.tpf, counts.acceptance_length, counts.by_position

Only servers with this plugin export these counters; from any other server all counts are 0.
"""

import os
import urllib.request
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

NAMES = {
    "nld:requests_total": "requests",
    "nld:output_tokens_total": "tokens",
    "nld:forwards_total": "forwards",
    "nld:draft_tokens_total": "drafted",
    "nld:accepted_draft_tokens_total": "kept",
    "nld:rejected_draft_tokens_total": "dropped",
    "nld:acceptance_length_count": "steps",
    "nld:acceptance_length_sum": "verified",
}
BUCKETS = "nld:acceptance_length_bucket"


@dataclass(frozen=True, slots=True)
class Counts:
    """Sums over requests.

    forwards: NFE. drafted, kept, dropped: draft tokens that were verified or taken, committed and rolled back.
    steps, verified: verify steps, and the tokens that they yielded. lengths: verify steps by the greatest number of
    tokens, cumulative, as Prometheus counts them: lengths["8"] steps yielded at most 8.
    """

    requests: float = 0
    tokens: float = 0
    forwards: float = 0
    drafted: float = 0
    kept: float = 0
    dropped: float = 0
    steps: float = 0
    verified: float = 0
    lengths: Mapping[str, float] = field(default_factory=dict)

    def __sub__(self, other: Self) -> Self:
        return self._with(other, -1)

    def __add__(self, other: Self) -> Self:
        return self._with(other, 1)

    def _with(self, other: Self, sign: int) -> Self:
        mine, theirs = asdict(self), asdict(other)
        ours, others = mine.pop("lengths"), theirs.pop("lengths")
        lengths = {le: ours.get(le, 0) + sign * others.get(le, 0) for le in {**others, **ours}}
        return type(self)(**{name: mine[name] + sign * theirs[name] for name in mine}, lengths=lengths)

    @property
    def tpf(self) -> float | None:
        """Output tokens per forward."""
        return self.tokens / self.forwards if self.forwards else None

    @property
    def acceptance_length(self) -> float | None:
        """Tokens per verify step, bonus token included."""
        return self.verified / self.steps if self.steps else None

    @property
    def by_position(self) -> dict[int, float]:
        """Share of verify steps that accepted the draft at a position, for the positions that the histogram tells."""
        if not self.steps:
            return {}
        bounds = sorted((int(float(le)), count) for le, count in self.lengths.items() if le != "+Inf")
        shares = {bound: 1 - count / self.steps for bound, count in bounds}  # more than `bound` tokens: draft accepted
        last = max((bound for bound, share in shares.items() if share > 0), default=0)
        return {bound: share for bound, share in shares.items() if bound <= last}


def total(counts: Iterable[Counts]) -> Counts:
    """The sum of several."""
    return sum(counts, Counts())


def fetch(url: str, timeout: float = 10) -> str:
    """A server's /metrics. Raises OSError if it doesn't answer."""
    headers = {"authorization": f"Bearer {key}"} if (key := os.environ.get("VLLM_API_KEY")) else {}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/metrics", headers=headers), timeout=timeout) as answer:
        return str(answer.read().decode())


def scrape(url: str, mode: str | None = None) -> Counts:
    """All counts so far, of every mode or of one. Raises OSError if the server doesn't answer."""
    return parse(fetch(url), mode)


def parse(text: str, mode: str | None = None) -> Counts:
    """The counts in a text of Prometheus's format."""
    sums: Counter[str] = Counter()
    lengths: Counter[str] = Counter()
    for name, labels, value in samples(text):
        if mode is not None and labels.get("mode") != mode:
            continue
        if name in NAMES:
            sums[NAMES[name]] += value  # type: ignore[assignment]  # typeshed's Counter counts whole numbers only
        elif name == BUCKETS:
            lengths[labels["le"]] += value  # type: ignore[assignment]  # see above
    return Counts(**sums, lengths=dict(lengths))


def modes(text: str) -> list[str]:
    """The modes that a server offers; empty if it hasn't this plugin."""
    found = (labels["mode"] for name, labels, _ in samples(text) if name == "nld:requests_total")
    return list(dict.fromkeys(found))


def build(text: str) -> dict[str, str]:
    """What the server says of itself: versions, checkpoint name, default mode; empty if it hasn't this plugin."""
    return next((labels for name, labels, _ in samples(text) if name == "nld:build_info"), {})


def samples(text: str) -> Iterable[tuple[str, dict[str, str], float]]:
    """Name, labels and value of each of our samples."""
    from prometheus_client.parser import text_string_to_metric_families

    ours = "\n".join(line for line in text.splitlines() if "nld:" in line) + "\n"
    for family in text_string_to_metric_families(ours):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def as_dict(counts: Counts) -> dict[str, Any]:
    """As plain data, from which `Counts(**data)` makes it again."""
    return asdict(counts)
