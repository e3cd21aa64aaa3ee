"""`bench alarms` counts what is significant, and says how many false alarms chance explains."""

import random
from typing import Any

import pytest

from bench import alarms
from vllm_nld.evaluate.statistics import LEVEL, holm, paired


def repeat(again_p: float, wrong_p: float) -> dict[str, Any]:
    return {"seed": 0, "ar": 0.9, "again": 0.9, "wrong": 0.3, "changed": 4, "again_p": again_p, "wrong_p": wrong_p}


@pytest.mark.parametrize(("repeats", "explained"), [(1, 0), (2, 1), (20, 3), (200, 15)])
def test_chance_explains_few_false_alarms(repeats: int, explained: int) -> None:
    found = [repeat(0.05, 0.001), *[repeat(0.051, 0.2)] * (repeats - 1)]
    result = {"provenance": {}, "prompts": 60, "temperature": 0.7, "level": LEVEL, "repeats": found}
    assert alarms.counted(result) == (repeats, 1, explained, 1)
    assert f"in 1 of {repeats}\n(chance alone explains up to {explained})" in alarms.summary(result)


def test_level_holds_beside_a_mode_that_is_wrong() -> None:
    """AR and AR again answer each prompt correctly with the same probability; a third mode is never right."""
    source = random.Random(0)
    counts = [0, 0]
    for _ in range(600):
        chances = [source.choice((1.0, 0.95, 0.5)) for _ in range(60)]
        base, again = ([source.random() < chance for chance in chances] for _ in range(2))
        pairs = [paired(ours, base) for ours in (again, [False] * 60)]
        for index, p in enumerate(holm([pair.p for pair in pairs if pair])):
            counts[index] += p <= LEVEL
    assert counts[0] <= 0.07 * 600 and counts[1] == 600
