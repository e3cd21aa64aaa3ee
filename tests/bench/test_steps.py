"""`python -m bench steps --quick`: a step's spans on a model with few layers, and the projection to all layers."""

import json
from pathlib import Path

import pytest

from bench import steps
from bench.__main__ import main
from bench.parts import DRAFT, HOST, PARTS, SAMPLING, VERIFY, VERIFY_LOGITS
from vllm_nld.roofline.devices import rates


def test_quick_run_on_nano(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, forked: None
) -> None:
    monkeypatch.setattr(steps, "cpu_rates", lambda: rates("cpu", rows=8, size=512))  # of few weights, which takes less
    file = tmp_path / "steps.json"
    main(["steps", "--quick", "--shape", "nano", "--json", str(file)])
    assert "| 32 | 1 |" in capsys.readouterr().out
    result = json.loads(file.read_text())
    plain, linear = (result["spans"][block]["1"] for block in ("1", "32"))
    assert len(plain) == len(linear) == 5
    assert all(step.keys() == {VERIFY, VERIFY_LOGITS, SAMPLING, HOST} for step in plain)
    assert all(step.keys() == set(PARTS) and min(step.values()) > 0 for step in linear)
    assert min(result["lora"]["32"]["1"]) > 0
    assert len(result["cpu_rates"]) == 2 and min(min(pair) for pair in result["cpu_rates"]) > 0


def test_projection_scales_only_the_forwards() -> None:
    step = {VERIFY: 4.0, DRAFT: 6.0, HOST: 1.0}
    result = {"shape": "3b", "layers": 2, "spans": {"32": {"1": [step]}}}
    assert steps.full_step(result, "32", "1", depth=2) == pytest.approx(11)
    assert steps.full_step(result, "32", "1", depth=20) == pytest.approx(101)
