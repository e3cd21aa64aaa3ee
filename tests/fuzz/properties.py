"""What must hold between the variants of a case: the same answer in ar and linear, streamed or not, or a refusal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from tests.fuzz.case import Answer, Case, Response, Variant
from tests.fuzz.endpoints import ENDPOINTS
from tests.fuzz.options import BAD_XARGS
from tests.fuzz.rules import broken
from vllm_nld.serving.modes import MODES

TOLERANCE = 2e-3  # of logprobs in fp32: batches of other sizes sum in other orders

# A refusal may name a part of a parameter instead.
PARTS = {"repetition_detection": ("pattern", "min_count"), "structured_outputs": ("hoice", "egex", "rammar", "json")}


@dataclass(frozen=True)
class Failure:
    """A property that does not hold, and the variants that show it."""

    name: str
    detail: str
    case: Case
    variants: tuple[Variant, ...]
    responses: tuple[Response, ...] = ()

    @property
    def kind(self) -> tuple[str, ...]:
        """Failures of one kind probably have one cause."""
        return self.name, self.case.endpoint, *(f"{v.mode}{' streamed' * v.stream}" for v in self.variants)


def judge(case: Case, responses: Sequence[Response | None]) -> list[Failure]:
    """All failures that the responses to a case's variants show. None stands for a client that left."""
    came = list(zip(case.variants, responses, strict=True))
    failures = []
    for variant, response in came:
        if response is not None:
            alike = variant == case.variants[0] or came[0][1] is None or came[0][1].status == 200
            wrongs = single(case, variant, response, case.bad or (refused(case, variant) if alike else ""))
            failures += [Failure(name, wrong, case, (variant,), (response,)) for name, wrong in wrongs]
    if case.bad or case.abort or not case.repeatable:
        return failures
    reference, first = came[0]
    for variant, response in came[1:]:
        if response is None or first is None or refused(case, variant):
            continue
        twins = [(v, r) for v, r in came if not v.stream and (v.asked, v.fields) == (variant.asked, variant.fields)]
        if variant.stream and twins and twins[0][1] is not None:
            pairs = [("stream = unstreamed", *twins[0])]
        elif not MODES[variant.mode].takes_blocks and (case.greedy or case.beams):
            pairs = [("ar = linear", reference, first)]
        else:
            pairs = []
            if (first.status == 200) != (response.status == 200):
                pairs = [("refused alike", reference, first)]
        for name, other, its in pairs:
            assert its is not None
            if wrong := "; ".join(differences(its, response)):
                failures.append(Failure(name, wrong, case, (other, variant), (its, response)))
    return failures


def refused(case: Case, variant: Variant) -> str:
    """The name of a parameter that the variant's mode does not serve."""
    mode = MODES[variant.mode]
    if case.beams and mode.takes_blocks:
        return "use_beam_search"
    values = ((name, case.options.get(name), neutral) for name, neutral in mode.refused.items())
    wrong = [name for name, value, neutral in values if (value or neutral) != neutral]
    if case.options.get("temperature") == 0:
        wrong = [name for name in wrong if name != "min_p"]  # vLLM drops what a greedy choice does not need
    return wrong[0] if wrong else ""


def single(case: Case, variant: Variant, response: Response, refuse: str) -> Iterator[tuple[str, str]]:
    """What is wrong with one response by itself. `refuse` is the parameter that must be refused, if any."""
    if response.status == 0:
        yield "answered", response.error
    elif response.status >= 500:
        yield "never 500", f"HTTP {response.status}: {response.error}"
    elif response.late and refuse in BAD_XARGS:
        yield "refused before a stream begins", response.error
    elif name := refuse:
        names = (name, ENDPOINTS[case.endpoint].renamed.get(name, name), *PARTS.get(name, ()))
        if response.status != 400:
            yield "bad values are refused", f"HTTP {response.status} for {name}: {response.error or response.answers}"
        elif not any(known in response.error for known in names):
            yield "a refusal names the field", f"{name} is not in {response.error}"
    elif response.status != 200:
        if response.status != 400 or not response.error:
            yield "refused with 400", f"HTTP {response.status}: {response.error}"
    else:
        yield from broken(case, variant, response)


def differences(one: Response, other: Response) -> Iterator[str]:
    """What differs between two responses that should be the same; what either does not say is left out."""
    if one.failed and other.failed:
        return  # each is a failure by itself
    if one.failed or other.failed or one.status != other.status:
        yield f"HTTP {one.status} {one.error} and {other.status} {other.error}"
        return
    for index, (a, b) in enumerate(zip_longest(one.answers, other.answers)):
        if a is None or b is None:
            yield f"{len(one.answers)} answers and {len(other.answers)}"
            return
        yield from (f"choice {index}: {wrong}" for wrong in unlike(a, b))
    if one.usage and other.usage and one.usage != other.usage:
        yield f"usage {one.usage} and {other.usage}"


def unlike(a: Answer, b: Answer) -> Iterator[str]:
    for name in ("ids", "text", "reasoning", "calls", "finish", "stop"):
        x, y = getattr(a, name), getattr(b, name)
        if x != y and not (name == "ids" and (x is None or y is None)):
            yield f"{name} {x!r} and {y!r}"
    if a.ids == b.ids and a.logprobs is not None and b.logprobs is not None:
        for at, (x, y) in enumerate(zip_longest(a.logprobs, b.logprobs)):
            if x is None or y is None or x[0] != y[0] or not close(x, y):
                yield f"logprobs at {at}: {x} and {y}"
                return


def close(x: Any, y: Any) -> bool:
    """Whether two tokens' logprobs, and their alternatives', are equal within rounding. Ties come in any order."""
    values = [(x[1], y[1]), *zip(sorted(v for _, v in x[2]), sorted(v for _, v in y[2]), strict=False)]
    if len(x[2]) != len(y[2]):
        return False
    return all(p == q or abs(p - q) <= TOLERANCE * max(1, abs(p)) for p, q in values if p is not None and q is not None)
