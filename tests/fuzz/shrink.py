"""Makes a failing case smaller, as long as it fails in the same way."""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

from tests.fuzz.case import Case
from tests.fuzz.properties import Failure

TRIES = 40  # cases to send at most
SMALL = ({"role": "user", "content": "Count from 1 to 5."},)


def smaller(case: Case) -> Iterator[Case]:
    """The case with one thing less each."""
    for option in case.options:
        if option not in (case.bad, "max_tokens"):
            yield case.without(option)
    if case.messages != SMALL and not case.raw:
        yield replace(case, messages=SMALL)
    if len(case.messages) > 1:
        yield replace(case, messages=case.messages[-1:])
    if case.tools:
        yield replace(case, tools=()).without("tool_choice")
    if case.thinking:
        yield replace(case, thinking=False)
    if case.raw:
        yield replace(case, raw=())
    for index, variant in enumerate(case.variants):
        for name in variant.fields if not case.bad else ():
            less = {field: value for field, value in variant.fields.items() if field != name}
            rest = list(case.variants)
            rest[index] = replace(variant, fields=less)
            if len(rest) == 1 or rest[0].asked != rest[1].asked:
                yield replace(case, variants=tuple(rest))
    if case.options["max_tokens"] != case.bad and isinstance(case.options["max_tokens"], int):
        for fewer in (1, case.options["max_tokens"] // 2):
            if 0 < fewer < case.options["max_tokens"]:
                yield replace(case, options=case.options | {"max_tokens": fewer})


async def shrink(failure: Failure, fails: Callable[[Case], Awaitable[list[Failure]]]) -> tuple[Failure, bool]:
    """The smallest failure found, and whether the case failed again by itself."""

    async def again(case: Case) -> Failure | None:
        return next((found for found in await fails(case) if found.kind == failure.kind), None)

    best = await again(replace(failure.case, variants=failure.variants))
    if best is None:
        return failure, False
    tries, progress = 0, True
    while progress and tries < TRIES:
        progress = False
        for case in smaller(best.case):
            tries += 1
            if (found := await again(case)) is not None:
                best, progress = found, True
                break
            if tries >= TRIES:
                break
    return best, True
