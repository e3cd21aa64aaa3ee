"""Sends rounds of cases, many requests at once, and judges what comes back.

After each round the server must be idle and healthy, and answer some of the round's requests alone as it did in the
batch.
"""

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from tests.fuzz.case import Case, Response, Variant
from tests.fuzz.client import Client, command
from tests.fuzz.draw import draw, prompts
from tests.fuzz.properties import Failure, differences, judge
from tests.fuzz.shrink import shrink
from tests.fuzz.upstream import known

ROUND = 24  # cases
ALONE = 3  # requests of a round that are sent again alone
SHRUNK = 2  # failures of one kind that are made smaller and printed
IDLE = 60.0  # seconds until a server that nobody asks must be idle
PLAIN = Case(
    -1,
    "chat",
    tuple(prompts()[0].messages),
    options={"temperature": 0, "max_tokens": 24},
    variants=tuple(Variant(mode) for mode in ("ar", "linear", "diffusion")),
)


@dataclass
class Report:
    """The result of a run."""

    seed: int
    cases: int = 0
    requests: int = 0
    answered: int = 0
    refused: int = 0
    left: int = 0
    alone: int = 0
    seconds: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)
    upstream: Counter[str] = field(default_factory=Counter)
    endpoints: Counter[str] = field(default_factory=Counter)


class Fuzzer:
    """Fuzzes one server."""

    def __init__(self, client: Client, seed: int, say: Callable[[str], None] = print) -> None:
        self.client, self.say = client, say
        self.report = Report(seed)
        self.shrunk: Counter[tuple[str, ...]] = Counter()

    async def run(self, seconds: float, requests: float, first: int = 0) -> Report:
        """Rounds until so many seconds have passed or so many requests were sent, or the server is dead."""
        begin = time.monotonic()
        right = await self.send(PLAIN)
        number = first
        while time.monotonic() - begin < seconds and self.report.requests < requests:
            cases = [draw(self.report.seed, number + index) for index in range(ROUND)]
            number += ROUND
            if not await self.round(cases, random.Random(f"{self.report.seed} round {number}")):
                break
            self.report.seconds = round(time.monotonic() - begin, 1)
            print(self.progress(), file=sys.stderr, flush=True)
        await self.same("a plain request is answered", PLAIN, right)
        return self.report

    def progress(self) -> str:
        r = self.report
        rate = r.requests / max(r.seconds, 1e-3)
        return f"{r.requests} requests, {rate:.1f}/s, {r.failures.total()} failures, {r.upstream.total()} vLLM's own"

    async def round(self, cases: Sequence[Case], rng: random.Random) -> bool:
        """Send these cases together; False if the server is dead."""
        gate = asyncio.Semaphore(rng.randint(8, 16))
        answers = await asyncio.gather(*(self.send(case, gate) for case in cases))
        for case, responses in zip(cases, answers, strict=True):
            self.report.cases += 1
            self.report.endpoints[case.endpoint] += len(responses)
            await self.judged(judge(case, responses))
        if not await self.idle():
            return False
        sent = [
            (case, variant, response)
            for case, responses in zip(cases, answers, strict=True)
            for variant, response in zip(case.variants, responses, strict=True)
            if response is not None and response.status == 200 and not case.bad and case.repeatable
        ]
        for case, variant, response in rng.sample(sent, min(len(sent), ALONE)):
            self.report.alone += 1
            await self.alone(replace(case, variants=(variant,), abort=0.0), response)
        return True

    async def alone(self, case: Case, response: Response) -> None:
        """Send one request again while nothing else runs: the same answer, decoded in the mode that it asks for."""
        await self.drained()
        before = await self.client.ended()
        await self.same("alone = in a batch", case, [response])
        modes: list[str] = []
        end = time.monotonic() + IDLE
        while not modes and time.monotonic() < end:  # metrics are updated after the answer
            after = await self.client.ended()
            modes = [mode for mode in after if after[mode] > before[mode]]
            await asyncio.sleep(0.02)
        if modes != [case.variants[0].mode] and not case.beams:  # beams are many requests of vLLM's own
            await self.judged([Failure("the mode asked for", str(modes), case, case.variants)], smaller=False)

    async def send(self, case: Case, gate: asyncio.Semaphore | None = None) -> list[Response | None]:
        async def one(variant: Variant) -> Response | None:
            async with gate or asyncio.Semaphore():
                response = await self.client.send(case, variant)
            self.report.requests += 1
            self.report.left += response is None
            self.report.answered += response is not None and response.status == 200
            self.report.refused += response is not None and response.status == 400
            return response

        return list(await asyncio.gather(*map(one, case.variants)))

    async def same(self, name: str, case: Case, expected: Sequence[Response | None]) -> None:
        """Send a case again. Its answers must be those that it got before."""
        for variant, before, now in zip(case.variants, expected, await self.send(case), strict=True):
            if before is None or now is None:
                continue
            if wrong := list(differences(before, now)):
                await self.judged([Failure(name, "; ".join(wrong), case, (variant,))], smaller=False)

    async def drained(self) -> float:
        """Wait until the server has nothing to do: the number of requests that it keeps."""
        end = time.monotonic() + IDLE
        while (left := await self.client.running()) and time.monotonic() < end:
            await asyncio.sleep(0.02)
        return left

    async def idle(self) -> bool:
        """Wait until the server has nothing to do; False if it is dead."""
        try:
            if left := await self.drained():
                await self.judged([Failure("nothing is left over", f"{left:.0f} requests", PLAIN, ())], smaller=False)
            healthy = await self.client.healthy()
        except httpx.HTTPError as error:
            self.say(f"the server does not answer: {error!r}")
            healthy = False
        if not healthy:
            self.report.failures["never dead"] += 1
        return healthy

    async def judged(self, failures: Sequence[Failure], smaller: bool = True) -> None:
        """Count failures, and print the first of each kind with the commands that show it."""
        for failure in failures:
            if reason := known(failure):
                self.report.upstream[f"{failure.variants[-1].mode}: {reason}"] += 1
                continue
            self.report.failures[" | ".join(failure.kind)] += 1
            self.shrunk[failure.kind] += 1
            if self.shrunk[failure.kind] <= SHRUNK:
                best, again = await shrink(failure, self.fails) if smaller else (failure, True)
                note = "" if again else ", not again when sent alone"
                note += "" if best.detail == failure.detail else f", at first: {failure.detail[:300]}"
                self.print(best, note)

    async def fails(self, case: Case) -> list[Failure]:
        return judge(case, await self.send(case))

    def print(self, failure: Failure, note: str) -> None:
        case = failure.case
        self.say(f"\nFAILURE: {failure.name}, {case.endpoint}, case {case.number}{note}\n  {failure.detail[:1500]}")
        for variant in failure.variants:
            self.say("  " + command(case, variant))


def summary(report: Report) -> dict[str, Any]:
    """The report in plain types."""
    return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(report).items()}
