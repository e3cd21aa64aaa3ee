"""The moving load: how many requests run at a time, and in which order questions are sent."""

import asyncio
from collections import Counter

import pytest

from bench.load import ramp
from vllm_nld.evaluate.loop import closed_loop


def test_ramp_rises_to_its_peak_and_falls_to_one() -> None:
    assert [clients for clients, _ in ramp(32)] == [1, 2, 4, 8, 16, 32, 16, 8, 4, 2, 1]
    assert [clients for clients, _ in ramp(6)] == [1, 2, 4, 6, 4, 2, 1]
    assert ramp(1) == [(1, 4)]
    assert all(count > 2 * clients for clients, count in ramp(32)), "each stage lasts for more than a question"


def test_number_of_requests_follows_the_stages() -> None:
    stages, running, order = ramp(8), 0, []
    stage_of = [index for index, (_, count) in enumerate(stages) for _ in range(count)]
    most: Counter[int] = Counter()

    async def ask(index: int) -> int:
        nonlocal running
        running += 1
        order.append(index)
        most[stage_of[index]] = max(most[stage_of[index]], running)
        for _ in range(20 + index * 7 % 5):  # answers of different lengths
            await asyncio.sleep(0)
        running -= 1
        return index

    answers = asyncio.run(closed_loop(stages, ask))
    assert order == answers == list(range(len(stage_of)))
    assert [most[index] for index in range(len(stages))] == [clients for clients, _ in stages]


def test_failed_request_ends_the_loop() -> None:
    async def ask(index: int) -> None:
        if index == 3:
            raise RuntimeError("failed")

    with pytest.raises(RuntimeError, match="failed"):
        asyncio.run(closed_loop([(2, 100)], ask))
