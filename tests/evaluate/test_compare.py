"""Verdicts of `compare`, from simulated answers: worse, as good, or too few prompts to tell."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.simulated import simulate
from vllm_nld.evaluate.asking import Answer
from vllm_nld.evaluate.comparison import drawing, per_cent, shown, write
from vllm_nld.evaluate.run import ANSWER, TURN, Turn
from vllm_nld.evaluate.statistics import quantile_ratio, ratio_of_ratios
from vllm_nld.evaluate.store import Store
from vllm_nld.evaluate.verdict import OK, UNCLEAR, WORSE, Limits, judge
from vllm_nld.tools.cli import main


def change_answers(store: Store, change: Callable[[int, Answer], Answer]) -> None:
    for number, (key, value) in enumerate(list(store.values.items())):
        kind, *rest = key.split(" / ")
        if kind == ANSWER:
            store.put((kind, *rest), change(number, Answer.load(value)).dump())


def change_turns(store: Store, change: Callable[[Turn], Turn]) -> None:
    for key, value in list(store.values.items()):
        kind, *rest = key.split(" / ")
        if kind == TURN:
            store.put((kind, *rest), change(Turn.load(value)).dump())


def slower(number: int, answer: Answer) -> Answer:
    return replace(answer, seconds=1.3 * answer.seconds)


def wrong(number: int, answer: Answer) -> Answer:
    return answer if number % 5 else replace(answer, correct=False)


def failing(number: int, answer: Answer) -> Answer:
    return answer if number % 10 else replace(answer, error="HTTP 500: broken")


def rejecting(turn: Turn) -> Turn:
    assert turn.counts is not None
    return replace(turn, counts=replace(turn.counts, verified=0.8 * turn.counts.verified))


CHANGES: dict[str, tuple[Callable[[Store], None], int, str]] = {
    "same": (lambda store: None, 0, "as good as"),
    "slower": (lambda store: change_answers(store, slower), 1, "E2E P50, E2E P95"),
    "wrong": (lambda store: change_answers(store, wrong), 1, "accuracy"),
    "failing": (lambda store: change_answers(store, failing), 1, "failures"),
    "rejecting": (lambda store: change_turns(store, rejecting), 1, "acceptance length"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_status_says_what_is_worse(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, status, words = CHANGES[name]
    simulate(tmp_path / "a", {"linear": 0.0}, count=400)
    store, *_ = simulate(tmp_path / "b", {"linear": 0.0}, count=400)
    change(store)
    file = tmp_path / "verdicts.json"
    sides, out = [str(tmp_path / side) for side in "ab"], tmp_path / "report"
    assert main(["compare", *sides, "--json", str(file), "--out", str(out)]) == status
    *_, last, _, where = capsys.readouterr().out.strip().splitlines()
    assert words in last and ("is worse than" in last) is bool(status) and str(out / "compare.html") in where
    outcomes = {verdict["name"]: verdict["outcome"] for verdict in json.loads(file.read_text())["linear"]}
    assert (WORSE in outcomes.values()) is bool(status)
    assert all(outcome in (OK, UNCLEAR) for name, outcome in outcomes.items() if name not in words)
    page = (out / "compare.html").read_text()
    assert last.replace("'", "&#39;") in page and page.count("data:image/svg+xml;base64,") == 1
    assert ('<td class="bold">worse</td>' in page) is bool(status) and 'src="http' not in page
    assert json.loads((out / "compare.json").read_text())["modes"] == json.loads(file.read_text())
    assert (out / "verdicts.svg").exists() and last in (out / "compare.md").read_text()


def test_the_plot_has_every_change_and_each_mode_by_name(tmp_path: Path) -> None:
    change, other = (1.2, 1.15, 1.3), (-0.02, -0.05, 0.01)
    slow = judge("E2E P95", change, 1.1, relative=True, more_is_worse=True)
    accuracy = judge("accuracy", other, -0.01, relative=False, more_is_worse=False)
    missing = judge("TPF", None, 0.95, relative=True, more_is_worse=False)
    found = {"ar": [accuracy, missing], "linear": [slow]}
    assert [name for name, _ in shown(found)] == ["ar: accuracy", "linear: E2E P95"]
    assert [name for name, _ in shown({"ar": [accuracy]})] == ["accuracy"]
    assert drawing(found).startswith("<?xml") and per_cent(1.2, True) == pytest.approx(20) == 10 * per_cent(0.02, False)
    write(tmp_path, "a", "b", {"ar": [missing]})
    assert not (tmp_path / "verdicts.svg").exists(), "nothing to draw"


def test_too_few_prompts_are_unclear(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side in "ab":
        simulate(tmp_path / side, {"linear": 0.0}, count=20)
    words = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "report")]
    assert main(words) == 0
    assert "more prompts would decide on accuracy" in capsys.readouterr().out
    assert main([*words, "--unclear-is-worse"]) == 1


def test_a_single_turn_is_no_proof(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side in "ab":
        store, *_ = simulate(tmp_path / side, {"linear": 0.0}, count=8)
    change_answers(store, slower)
    change_turns(store, rejecting)
    words = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "report")]
    assert main(words) == 0
    found = {
        verdict["name"]: verdict["outcome"]
        for verdict in json.loads((tmp_path / "report/compare.json").read_text())["modes"]["linear"]
    }
    assert {found[name] for name in ("E2E P50", "E2E P95", "acceptance length")} == {UNCLEAR}
    assert found["TPF"] == OK == found["failures"], "where nothing changed, more prompts are not needed"


@pytest.mark.parametrize(
    ("change", "more_is_worse", "outcome"),
    [
        ((1.2, 1.15, 1.3), True, WORSE),
        ((1.0, 0.9, 1.05), True, OK),
        ((1.1, 1.0, 1.2), True, UNCLEAR),
        ((0.8, 0.7, 1.05), False, WORSE),
        ((1.2, 1.15, 1.3), False, OK),
    ],
)
def test_limit_is_compared_with_the_interval(change: Any, more_is_worse: bool, outcome: str) -> None:
    assert judge("x", change, 1.1, relative=True, more_is_worse=more_is_worse).outcome == outcome


def test_limits_are_not_negative() -> None:
    with pytest.raises(ValueError, match="negative"):
        Limits(accuracy=-0.1)


def test_quantiles_are_compared_over_the_same_prompts() -> None:
    seconds = [1 + 0.01 * index for index in range(100)]
    value, low, high = quantile_ratio([2 * s for s in seconds], seconds, 0.95)  # type: ignore[misc]  # there are prompts
    assert value == low == high == 2, "every prompt took twice as long"
    assert quantile_ratio([], [], 0.5) is None


def test_ratios_are_compared_over_the_same_turns() -> None:
    assert ratio_of_ratios(([4, 8], [1, 2]), ([2, 4], [1, 2])) == pytest.approx((2, 2, 2))
    assert ratio_of_ratios(([0], [1]), ([1], [1])) is None


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ("http://127.0.0.1:9", "runs", "must both be URLs"),
        ("nothing", "nothing", "can't be read: No such file"),
    ],
)
def test_sides_that_cannot_be_compared(a: str, b: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["compare", a, b])
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_sides_need_a_mode_in_common(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulate(tmp_path / "a", {"linear": 0.0}, count=20)
    simulate(tmp_path / "b", {"auto": 0.0}, count=20)
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path)])
    assert "no mode in common" in capsys.readouterr().err


def test_other_prompts_are_not_compared(tmp_path: Path) -> None:
    """A server's comparison keeps to one prompt file."""
    store = Store(tmp_path / "x", {"prompts": "1", "seed": 0}, keep=True)
    store.put(("a",), 1)
    with pytest.raises(ValueError, match="prompts 1 instead of 2"):
        Store(tmp_path / "x", {"prompts": "2", "seed": 0}, keep=True)
    assert Store(tmp_path / "x", {"prompts": "1", "seed": 0}, keep=True).get(("a",)) == 1
