"""Figures over answers: both acceptance lengths, forwards, committed and rolled-back tokens."""

import pytest

from bench.contenders import Contender, nfe
from bench.quality import Answer, by_position, figures

GOOD = Answer("count", True, "a", tokens=17, nfe=5, accepted=(0, 0, 0, 0, 0, 0, 0, 2), drafted=14)  # 2 steps of 8
BAD = Answer("sql", False, "b", tokens=9, nfe=17, accepted=(8, 0, 0, 0, 0, 0, 0, 0), drafted=56)  # 8 steps of 1


def test_both_acceptance_lengths() -> None:
    both = figures([GOOD, BAD])
    assert both["acceptance_length"] == pytest.approx((2 * 8 + 8 * 1) / 10)
    assert both["acceptance_length_mean"] == pytest.approx((8 + 1) / 2)
    assert both["tpf"] == pytest.approx(26 / 22)
    assert both["exact"] == 0.5
    assert (both["kept"], both["rolled_back"]) == (14, 56)


def test_acceptance_by_position() -> None:
    assert by_position([GOOD, BAD]) == [0.2] * 7
    steps = Answer("x", None, "", 6, 7, accepted=(1, 1, 1, 0))  # 0, 1 and 2 drafts accepted
    assert by_position([steps]) == pytest.approx([2 / 3, 1 / 3, 0])


def test_ar_has_no_acceptance_length() -> None:
    none = figures([Answer("x", None, "", tokens=5, nfe=5)])
    assert none["tpf"] == 1 and none["acceptance_length"] is None and none["exact"] is None


@pytest.mark.parametrize(
    ("forwards", "accepted", "expected"),
    [("tokens", (), 20), ("rounds", (1, 0, 2), 1 + 2 * 3), ("lookup", (5, 0, 4), 20 - 8)],
)
def test_nfe_of_a_request(forwards: str, accepted: tuple[int, ...], expected: int) -> None:
    assert nfe(Contender("server", forwards), 20, accepted) == expected
