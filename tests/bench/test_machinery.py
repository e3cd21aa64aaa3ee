"""Shared parts of the benchmarks: sample store, spans, spreads, plots, provenance."""

import random
import statistics
import time
from pathlib import Path

import pytest

from bench import overhead, plots
from bench.spans import Spans
from vllm_nld.evaluate.spread import bounds, interval, ratios, spread, table
from vllm_nld.evaluate.store import Store
from vllm_nld.tools.provenance import describe, provenance


def test_interrupted_run_resumes(tmp_path: Path) -> None:
    file, calls = tmp_path / "samples.jsonl", []

    def measure() -> int:
        calls.append(1)
        return len(calls)

    store = Store(file, {"revision": "a"})
    assert [store.sample(("round", turn), measure) for turn in (0, 1, 0)] == [1, 2, 1]
    with file.open("a") as output:
        output.write('{"key": "round / 2", "val')  # interrupted mid-line
    again = Store(file, {"revision": "a"})
    assert [again.sample(("round", turn), measure) for turn in (0, 1, 2)] == [1, 2, 3]
    assert Store(file, {"revision": "a"}).values == {"round / 0": 1, "round / 1": 2, "round / 2": 3}


def test_samples_of_another_revision_are_discarded(tmp_path: Path) -> None:
    Store(tmp_path / "x", {"revision": "a"}).sample(("k",), lambda: 1)
    assert Store(tmp_path / "x", {"revision": "b"}).sample(("k",), lambda: 2) == 2
    assert Store(tmp_path / "x", {"revision": "b"}, fresh=True).sample(("k",), lambda: 3) == 3


def test_span_excludes_inner_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def work(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    spans = Spans(lambda: None)
    inner = spans.wrap("inner", lambda: work(4))
    outer = spans.wrap("outer", lambda: (work(1), inner(), work(2)))
    outer()
    assert spans.take() == {"inner": 4, "outer": 3}
    assert spans.take() == {}


def test_span_ends_on_an_exception() -> None:
    spans = Spans(lambda: None)

    def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        spans.wrap("failing", fail)()
    assert not spans.inside("failing")


def test_spread_and_ratios() -> None:
    assert spread([3.0, 1.0, 2.0], 1) == "2.0 (1.0–3.0)"
    assert spread([], 1) == "–"
    assert ratios([2.0, 6.0], [1.0, 2.0]) == [2.0, 3.0]
    with pytest.raises(ValueError):
        ratios([1.0], [1.0, 2.0])
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_interval_of_known_data() -> None:
    assert interval([], 2) == "–"
    assert interval([1.5], 2) == interval([1.5] * 30, 2) == "1.50 [1.50, 1.50]"
    low, high = bounds(range(1, 32))  # by the binomial distribution: the 10th and the 22nd of 31 samples
    assert abs(low - 10) <= 1 and abs(high - 22) <= 1
    assert bounds([*range(1, 31), 1e9]) == bounds(range(1, 32)), "one slow minute has no influence"


def test_interval_contains_the_true_median_as_often_as_it_says() -> None:
    source, hits = random.Random(0), []
    for _ in range(200):
        low, high = bounds([source.lognormvariate(0, 0.3) for _ in range(30)])
        hits.append(low <= 1 <= high)
    assert 0.9 < statistics.mean(hits) < 0.99


def test_overhead_is_a_share_of_the_step() -> None:
    row = {"requests": 64.0, "step": 20.0, overhead.CORE: 0.02, overhead.AUTO: 0.1, overhead.SERVER: 0.4}
    assert "| 64 | 20.00 | 0.0200 (0.10%) | 0.1000 (0.50%) | 0.4000 (2.00%) |" in overhead.report([row])


def test_provenance_has_machine_versions_and_revision_but_no_path() -> None:
    source = provenance()
    assert source["packages"]["torch"] and source["machine"]["cores"] >= 1 and source["revision"]
    assert "/" not in describe(source).replace("GB/s", "")


def test_stale_plots_are_detected(tmp_path: Path) -> None:
    row = {"model": "3b", "mode": "AR", "batch": 1, "measured": 2.0, "predicted": 3.0}
    result = {"measured": [row, row | {"batch": 2}]}
    plots.draw(plots.roofline, result, tmp_path / "plot.svg")
    assert plots.is_current(plots.roofline, result, tmp_path / "plot.svg")
    assert not plots.is_current(plots.roofline, {"measured": [row]}, tmp_path / "plot.svg")
