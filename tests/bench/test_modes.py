"""`python -m bench modes --quick` against real servers: every figure is present and plausible."""

import json
import shlex
from pathlib import Path

import pytest

from bench.__main__ import main
from tests.serving.test_server import UNI

CONTENDERS = ["AR", "linear, B 32", "diffusion, 0.9"]


@pytest.mark.server
def test_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "modes.json"
    options = ["--rounds", "2", "--only", *CONTENDERS, f"--flags={shlex.join(UNI)}"]
    main(["modes", "--quick", *options, "--out", str(tmp_path), "--json", str(file)])
    report = capsys.readouterr().out
    result = json.loads(file.read_text())
    assert set(result["speed"]) == set(result["quality"]) == set(CONTENDERS)
    for samples in result["speed"].values():
        for concurrency, runs in samples.items():
            assert len(runs) == 2, concurrency
            assert all(run["tokens_per_s"] > 0 and run["latency_ms"]["p95"] >= run["ttft_ms"]["p50"] for run in runs)
    plain, linear, diffusion = (result["quality"][name] for name in CONTENDERS)
    assert plain["tpf"] == 1 and plain["acceptance_length"] is None
    assert linear["acceptance_length"] > 2 and linear["tpf"] > 1.2, "a trained model's drafts are accepted"
    assert 0 < linear["acceptance_length_mean"] != linear["acceptance_length"]
    assert all(first >= second for first, second in zip(linear["by_position"], linear["by_position"][1:], strict=False))
    assert diffusion["nfe"] < diffusion["tokens"], "the server counts forwards, and there are fewer than tokens"
    same = [a == b for a, b in zip(plain["digests"], linear["digests"], strict=True)]
    assert sum(same) >= 0.8 * len(same), "lossless up to near-ties in bf16"
    assert "| linear, B 32 |" in report and "× AR at 1" in report
    assert str(tmp_path) not in file.read_text(), "results contain no path"
