"""Intervals and tests: against known values, and over repeated simulated evaluations."""

import random
from statistics import mean

import pytest

from tests.scale import scaled
from vllm_nld.evaluate.statistics import (
    LEVEL,
    difference_interval,
    holm,
    mcnemar,
    paired,
    prompts_needed,
    quantile,
    ratio,
    share,
)

REPEATS = scaled(20)


def test_share_has_wilsons_interval() -> None:
    assert share(0, 0) is None
    assert share(8, 10) == pytest.approx((0.8, 0.4901, 0.9433), abs=1e-4)
    assert share(10, 10)[1] < 1  # type: ignore[index]  # there are trials


def test_mcnemar_is_exact() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(0, 6) == pytest.approx(2 / 2**6)
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)


def test_paired_counts_prompts_that_changed() -> None:
    found = paired([True, True, False, True], [True, False, True, False])
    assert found is not None and (found.gained, found.lost, found.difference) == (2, 1, 0.25)
    assert paired([], []) is None
    with pytest.raises(ValueError):
        paired([True], [])


def test_difference_has_an_interval_even_if_nothing_changed() -> None:
    low, high = difference_interval(0, 0, 100)
    assert low < 0 < high and high == pytest.approx(-low) and high < 0.03


def test_holm_adjusts_for_the_number_of_comparisons() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1] and holm([]) == []


def test_quantile_lies_between_order_statistics() -> None:
    assert quantile([], 0.5) is None
    middle, low, high = quantile(range(1, 101), 0.5)  # type: ignore[misc]  # there are values
    assert (middle, low, high) == (50.5, 40, 61)
    assert quantile(range(1, 21), 0.95)[2] == 20  # type: ignore[index]  # there are values


def test_ratio_of_sums_weighs_long_turns_more() -> None:
    assert ratio([], []) is None and ratio([1], [0]) is None
    assert ratio([6], [2]) == (3, 3, 3) == ratio([6, 12], [2, 4])
    value, low, high = ratio([10, 0, 30], [10, 10, 10])  # type: ignore[misc]  # there is something below
    assert value == pytest.approx(4 / 3) and low < value < high


def test_number_of_prompts_that_a_difference_takes() -> None:
    """One point at 5 % discordant prompts: by simulation, McNemar's test finds it in about 80 % of the cases."""
    assert prompts_needed(0.01, 0.05) == 3925
    assert prompts_needed(0, 0.5) == 0


def answers(source: random.Random, prompts: int, accuracy: float) -> list[bool]:
    return [source.random() < accuracy for _ in range(prompts)]


def worsened(source: random.Random, answered: list[bool], lost: float, gained: float) -> list[bool]:
    """The same prompts in a mode that loses and gains these shares of right and wrong answers."""
    return [source.random() >= lost if right else source.random() < gained for right in answered]


@pytest.mark.parametrize("prompts", [150])
def test_planted_wrong_mode_is_found_and_a_mode_against_itself_is_not(prompts: int) -> None:
    """Four modes, as in a report: identical answers, a harmless change, the same by chance, and one that is wrong."""
    wrong_found, false_finds = [], []
    for seed in range(REPEATS):
        source = random.Random(seed)
        ar = answers(source, prompts, 0.8)
        swapped = worsened(source, ar, 0.04, 0.16)  # as many gained as lost, on average
        wrong = worsened(source, ar, 0.3, 0.02)
        values = [paired(mode, ar).p for mode in (ar, swapped, wrong)]  # type: ignore[union-attr]  # there are prompts
        adjusted = holm(values)
        assert values[0] == adjusted[0] == 1, "a mode against itself"
        false_finds.append(adjusted[1] <= LEVEL)
        wrong_found.append(adjusted[2] <= LEVEL)
    assert all(wrong_found)
    assert mean(false_finds) <= 0.15, "at most three of twenty: more has a probability below 2 % at this level"


def test_intervals_contain_the_truth_as_often_as_they_say() -> None:
    source, hits = random.Random(0), {"share": [], "difference": [], "quantile": []}  # type: ignore[var-annotated]  # filled below
    for _ in range(200):
        ar = answers(source, 100, 0.8)
        other = worsened(source, ar, 0.1, 0.1)
        _, low, high = share(sum(ar), 100)  # type: ignore[misc]  # there are trials
        hits["share"].append(low <= 0.8 <= high)
        found = paired(other, ar)
        assert found is not None
        hits["difference"].append(found.low <= -0.06 <= found.high)
        _, low, high = quantile([source.expovariate(1) for _ in range(200)], 0.95)  # type: ignore[misc]  # there are values
        hits["quantile"].append(low <= 2.9957 <= high)
    for name, found_in in hits.items():
        assert 0.91 <= mean(found_in) <= 1, name
