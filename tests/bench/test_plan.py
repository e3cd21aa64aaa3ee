"""`python -m bench plan`: what it makes of its measurements. The server and the loads are measured by hand."""

import json
from dataclasses import astuple
from pathlib import Path

import pytest

from bench.calibration import Cell, Found, costs_of
from bench.plan import report
from vllm_nld.plan.front_end import Costs
from vllm_nld.plan.steps import Curves, Roofline
from vllm_nld.roofline.devices import DEVICES
from vllm_nld.roofline.shapes import nano

BASE = Roofline(nano(), DEVICES["H100"])
TRUE = Costs(request=3e-3, step=2e-4, piece=1e-4)


def cells(clock: float) -> tuple[Cell, ...]:
    """An engine that takes 3 ms for any step, and an API server whose CPU seconds take so many on the clock."""
    found = []
    for count in (1, 4, 16, 64):
        for block in (1, 8):
            work = TRUE.step + TRUE.piece * count
            found.append(Cell(count, block, step=3e-3, seen=max(3e-3, clock * work), work=work))
    return tuple(found)


@pytest.mark.parametrize("clock", [1.0, 1.5])
def test_costs_follow_from_cpu_time_and_streams_that_fall_behind(clock: float) -> None:
    costs, stretch = costs_of(cells(clock), lone=TRUE.request + TRUE.step + TRUE.piece)
    assert stretch == pytest.approx(clock)
    assert astuple(costs) == pytest.approx([clock * seconds for seconds in astuple(TRUE)])


def test_streams_that_keep_up_say_nothing_of_the_clock() -> None:
    kept_up = [cell for cell in cells(1.5) if cell.requests <= 4]
    costs, stretch = costs_of(kept_up, lone=0.0)
    assert astuple(costs) == pytest.approx((0.0, TRUE.step, TRUE.piece)) and stretch == 1


def test_what_was_measured_is_a_plans_input(tmp_path: Path) -> None:
    measured = {(n, b): 3.0 for n in (1, 4) for b in (1, 8)}
    curves = Curves(BASE, measured, 100, {60: 5.0, 240: 9.0}, request_ms=1.5, front=TRUE)
    file = tmp_path / "curves.json"
    file.write_text(json.dumps(Found(curves, 1.2, cells(1.2)).plain()))
    read = Curves.read(file, BASE)
    assert (read.cells, read.context, read.prompts, read.request_ms) == (measured, 100, {60: 5.0, 240: 9.0}, 1.5)
    assert astuple(read.front) == pytest.approx(astuple(TRUE))


def test_the_report_counts_what_is_close() -> None:
    names = ["tokens/s", *(f"{name} p{share}" for name in ("ttft", "latency") for share in (50, 95))]
    row = {"mode": "ar", "load": 0.5, "measured": dict.fromkeys(names, 1.0)}
    rows = [{**row, "simulated": dict.fromkeys(names, value)} for value in (1.19, 0.7)]
    machine = {"processor": "CPU", "cores": 2, "memory_gib": 8, "gpu": None}
    about = {"machine": machine, "revision": "x", "python": "3", "packages": {}}
    front = {"request": 3.0, "step": 0.2, "piece": 0.1}
    result = {"provenance": about, "requests": 9, "front_end_ms": front, "stretch": 1.0, "request_ms": 1.0}
    text = report(result | {"rows": rows})
    assert "(+19%)" in text and "(-30%)" in text and text.endswith("5 of 10 within 20%.")
