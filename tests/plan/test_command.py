"""`vllm-nld plan`: the fewest GPUs, their cost, and options that can't be."""

import json
from pathlib import Path

import pytest

from vllm_nld.plan.report import answer, order
from vllm_nld.plan.search import fewest
from vllm_nld.tools.cli import main

TRAFFIC = ["--prompt", "200", "--output", "uniform:50-150", "--seconds", "20", "--max-num-seqs", "16"]


def plan(tmp_path: Path, *words: str) -> tuple[int, dict]:
    file = tmp_path / "plan.json"
    status = main(["plan", "--json", str(file), *words])
    return status, json.loads(file.read_text())


@pytest.mark.parametrize("needed", [1, 2, 5, 16, 63])
def test_the_search_finds_the_fewest(needed: int) -> None:
    tried: list[int] = []

    def meets(count: int) -> bool:
        tried.append(count)
        return count >= needed

    assert fewest(meets, least=1, most=64) == needed
    assert len(tried) == len(set(tried)) <= 13
    assert fewest(meets, least=max(1, needed * 4 // 5), most=64) == needed
    assert fewest(lambda count: False, most=64) is None


def test_a_plan_says_how_many_and_what_they_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--rate",
        "60",
        "--p95-latency",
        "1.5",
        "--price",
        "H100=2",
        "B200=9",
        "--gpus",
        "H100",
        "B200",
        "--modes",
        "ar",
        "auto",
    ]
    status, found = plan(tmp_path, *words, *TRAFFIC)
    rows = {(row["gpu"], row["mode"]): row for row in found["rows"]}
    assert status == 0
    assert rows["H100", "auto"]["gpus"] <= rows["H100", "ar"]["gpus"], "drafting needs no more GPUs"
    for row in rows.values():
        figures = row["figures"]
        assert figures["p95"]["latency"] <= 1.5 and not figures["saturated"]
        rate, price = figures["tokens_per_second"], {"H100": 2, "B200": 9}[row["gpu"]]
        assert row["cost_per_million"] == pytest.approx(1e6 / rate * row["gpus"] * price / 3600)
        below = row["tried"].get(str(row["replicas"] - 1))
        assert row["replicas"] == 1 or below is None or below["p95"]["latency"] > 1.5 or below["growth"] > 0.1
    cheapest = min(rows.values(), key=order)
    assert cheapest["cost_per_million"] == pytest.approx(
        min(row["cost_per_million"] for row in rows.values()), abs=0.01
    )
    out = capsys.readouterr().out
    assert f"Cheapest: {cheapest['gpus']} × {cheapest['gpu']} in mode {cheapest['mode']}" in out


@pytest.mark.parametrize("costs", [(None, None), (0.1131, 0.1138)], ids=["no prices", "the same price"])
def test_of_fleets_that_cost_the_same_the_faster_one_is_the_answer(costs: tuple[float | None, float | None]) -> None:
    """The rest of the cost per token is which requests the measured time happened to end with."""
    rows = [
        {"gpu": "H100", "mode": mode, "gpus": 1, "cost_per_million": cost, "figures": {"p95": {"latency": latency}}}
        for mode, cost, latency in zip(("ar", "auto"), costs, (3.7, 1.2), strict=True)
    ]
    told = answer({"model": "8b", "traffic": "a trace", "targets": {}, "searched": True, "rows": rows})
    assert "1 × H100 in mode auto" in told


def test_ten_times_the_traffic_takes_about_ten_times_the_gpus(tmp_path: Path) -> None:
    counts = []
    for rate in ("100", "1000"):
        _, found = plan(tmp_path, "--rate", rate, "--p95-tpot", "0.012", "--modes", "ar", *TRAFFIC)
        counts.append(found["rows"][0]["replicas"])
    assert counts[1] / counts[0] == pytest.approx(10, rel=0.35)


def test_a_slow_api_server_takes_more_replicas_unless_it_has_more_processes(tmp_path: Path) -> None:
    words = ["--rate", "60", "--p95-tpot", "0.02", "--modes", "ar", *TRAFFIC]
    counts = []
    for more in (["0", "0", "0"], ["2", "0.2", "2"], ["2", "0.2", "2", "--api-servers", "8"]):
        _, found = plan(tmp_path, *words, "--front-end", *more)
        counts.append(found["rows"][0]["replicas"])
    assert counts[0] <= counts[2] < counts[1]


def test_the_api_server_is_that_of_the_curves_unless_it_is_given(tmp_path: Path) -> None:
    file = tmp_path / "curves.json"
    cells = [{"requests": n, "block": b, "ms": 5.0} for n in (1, 16) for b in (1, 8)]
    file.write_text(json.dumps({"cells": cells, "front_end_ms": {"request": 400.0, "step": 0.0, "piece": 0.0}}))
    words = ["--rate", "1", "--replicas", "1", "--modes", "ar", "--curves", f"H100={file}", *TRAFFIC]
    firsts = [
        plan(tmp_path, *words, *more)[1]["rows"][0]["figures"]["p50"]["ttft"]
        for more in ([], ["--front-end", "0", "0", "0"])
    ]
    assert firsts[0] > 0.4 > firsts[1]


def test_a_trace_on_a_given_fleet(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("time,prompt_tokens,output_tokens\n" + "".join(f"{n / 4},100,{20 + n % 7}\n" for n in range(60)))
    status, found = plan(tmp_path, "--trace", str(trace), "--replicas", "2", "--modes", "linear", "diffusion")
    assert status == 0
    assert [row["gpus"] for row in found["rows"]] == [2, 2]
    assert all(row["figures"]["requests"] == 48 for row in found["rows"]), "the first fifth warms up"


def test_no_fleet_is_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, found = plan(tmp_path, "--rate", "5", "--p95-ttft", "0.000001", "--max-replicas", "2", *TRAFFIC)
    assert status == 1 and all(row["replicas"] is None for row in found["rows"])
    assert "No fleet that was tried meets this" in capsys.readouterr().out


BAD = {
    "no traffic": ([], "say how much traffic there is"),
    "no target": (["--rate", "1"], "give a target"),
    "GPU": (["--rate", "1", "--replicas", "1", "--gpus", "A100"], "--gpus 'A100' is not one of H100"),
    "mode": (["--rate", "1", "--replicas", "1", "--modes", "fast"], "--modes 'fast' is not one of ar"),
    "price": (["--rate", "1", "--replicas", "1", "--price", "2.5"], "'' is not one of H100"),
    "price text": (["--rate", "1", "--replicas", "1", "--price", "H100=cheap"], "write KIND=VALUE"),
    "curves": (["--rate", "1", "--replicas", "1", "--curves", "H100=/none"], "/none has no usable step times"),
    "target": (["--rate", "1", "--p95-ttft", "0"], "--p95-ttft must be above 0 seconds"),
    "acceptance": (["--rate", "1", "--replicas", "1", "--model", "nano"], "give --acceptance"),
    "model": (["--rate", "1", "--replicas", "1", "--model", "9b"], "neither one of 3b"),
    "memory": (
        ["--rate", "1", "--replicas", "1", "--kv-tokens", "300"],
        "doesn't fit into the KV cache, which holds 300",
    ),
    "API server": (["--rate", "1", "--replicas", "1", "--front-end", "1", "0", "-1"], "per piece can't be negative"),
    "API servers": (
        ["--rate", "1", "--replicas", "1", "--api-servers", "0"],
        "--api-servers must be at least 1, not 0",
    ),
    "fleet": (["--rate", "1", "--replicas", "0"], "--replicas must be at least 1"),
    "links": (["--rate", "-1", "--replicas", "1"], "rate -1.0"),
}


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD)
def test_bad_options_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    file = tmp_path / "plan.png"
    plan(tmp_path, "--rate", "20", "--p95-latency", "2", "--modes", "ar", "--plot", str(file), *TRAFFIC)
    assert file.stat().st_size > 5000
