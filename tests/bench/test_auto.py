"""The simulation of `auto`: against published forward times it chooses the best block length, or one as good."""

import argparse

import pytest

from bench import auto
from vllm_nld.roofline.published import FORWARD_CONCURRENCIES, FORWARD_MS, ROUND_YIELDS


@pytest.fixture(scope="module")
def cells() -> list[dict]:
    return auto.run(argparse.Namespace(steps=800, seed=1))["cells"]


def test_the_choice_is_within_three_percent_of_the_best(cells: list[dict]) -> None:
    assert len(cells) == len(FORWARD_MS) * len(FORWARD_CONCURRENCIES)
    assert min(cell["choice"] for cell in cells) > 0.97


def test_trials_cost_little(cells: list[dict]) -> None:
    assert min(cell["all"] for cell in cells) > 0.95


@pytest.mark.parametrize("model", ROUND_YIELDS)
def test_the_survival_curve_goes_through_the_published_yields(model: str) -> None:
    curve = auto.survival_curve(ROUND_YIELDS[model])
    assert (curve[1:] <= curve[:-1] + 1e-9).all()
    for length, tokens in ROUND_YIELDS[model].items():
        assert auto.yields(curve, length) == pytest.approx(tokens, rel=1e-3)
