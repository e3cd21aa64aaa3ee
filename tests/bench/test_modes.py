"""`python -m bench modes --quick` against real servers: every figure is present and plausible."""

import json
import shlex
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from bench import first_token, modes, modes_report
from bench.__main__ import main
from bench.contenders import AUTO, COMMON, CONCURRENCIES, CONTENDERS, FIXED
from bench.fleet import Fleet
from bench.load import MOVING
from bench.modes import Plan
from bench.prompts import Question
from tests.bench.groups import cpu_seconds
from tests.serving.test_server import UNI

CHOSEN = ["AR", "auto", "AR, by request", "linear, B 32", "diffusion, 0.9"]


class Watch:
    """Notes the CPU time that servers used while another one was timed, and measures a first token in passing."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.fleet: Fleet | None = None
        self.spent: list[float] = []
        self.first: dict[str, float] = {}
        turn, drive = Fleet.turn, modes.drive

        def watched_turn(fleet: Fleet, name: str, *arguments: Any) -> Any:
            self.fleet = fleet
            return turn(fleet, name, *arguments)

        def watched_drive(url: str, *arguments: Any) -> Any:
            if url == self.fleet.servers["nld"].url and not self.first:  # type: ignore[union-attr]  # it has turned
                self.first = first_token.seen_from_outside(url, [Question("", "hello", 9)] * 3, "linear")
            before = self.others(url)
            sample = drive(url, *arguments)
            self.spent.append(self.others(url) - before)
            return sample

        patch.setattr(Fleet, "turn", watched_turn)
        patch.setattr(modes, "drive", watched_drive)

    def others(self, url: str) -> float:
        assert self.fleet is not None
        servers = [server for server in self.fleet.servers.values() if server.url != url]
        assert servers, "another server is up"
        return sum(cpu_seconds(server.process.pid) for server in servers if server.process is not None)


@pytest.mark.server
def test_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    file = tmp_path / "modes.json"
    flags = shlex.join([*UNI, "--dtype", "float32"])
    options = ["--rounds", "1", "--limit", "12", "--only", *CHOSEN, f"--flags={flags}"]
    main(["modes", "--quick", *options, "--out", str(tmp_path), "--json", str(file)])
    report = capsys.readouterr().out
    result = json.loads(file.read_text())
    assert set(result["speed"]) == set(result["quality"]) == set(CHOSEN)
    for name, samples in result["speed"].items():
        assert (MOVING in samples) == (name == AUTO or name in FIXED)
        for load, runs in samples.items():
            assert len(runs) == 1, load
            assert all(run["tokens_per_s"] > 0 for run in runs)
            assert load == MOVING or all(run["latency_ms"]["p95"] >= run["ttft_ms"]["p50"] for run in runs)
    assert len(watch.spent) >= 2 * len(CHOSEN) and max(watch.spent) == 0, "only the timed server runs"
    assert set(watch.first) == {first_token.CLIENT, *first_token.METRICS}
    assert watch.first[first_token.CLIENT] > watch.first[first_token.SERVER] > watch.first[first_token.PREFILL] > 0
    plain, auto, asked, linear, diffusion = (result["quality"][name] for name in CHOSEN)
    assert plain["tpf"] == 1 and plain["acceptance_length"] is None
    assert linear["acceptance_length"] > 2 and linear["tpf"] > 1.2, "a trained model's drafts are accepted"
    assert 0 < linear["acceptance_length_mean"] != linear["acceptance_length"]
    assert all(first >= second for first, second in zip(linear["by_position"], linear["by_position"][1:], strict=False))
    assert diffusion["nfe"] < diffusion["tokens"], "the server counts forwards, and there are fewer than tokens"
    for lossless in (auto, asked, linear):
        assert lossless["digests"] == plain["digests"]
    assert "| linear, B 32 |" in report and "× AR at 1" in report and "| auto / best fixed |" in report
    assert str(tmp_path) not in file.read_text(), "results contain no path"


def test_every_pair_alternates() -> None:
    plan = Plan(tuple(CONTENDERS))
    assert plan.rounds >= 30
    runs = plan.runs()
    assert set(Counter(runs).values()) == {1}, "once per round and load"
    for load in (*map(str, CONCURRENCIES), MOVING):
        for turn in range(plan.rounds):
            timed = {name for round_, at, name in runs if (round_, at) == (turn, load)}
            assert {AUTO, *FIXED} <= timed
    orders = [plan.order(turn) for turn in range(plan.rounds)]
    for one, other in permutations(plan.contenders, 2):
        assert sum(order.index(one) < order.index(other) for order in orders) == plan.rounds / 2


def test_a_step_holds_a_whole_block_of_every_request() -> None:
    flags = dict(zip(COMMON[::1], COMMON[1:], strict=False))
    rows = max(CONCURRENCIES) * max(contender.block_length or 1 for contender in CONTENDERS.values())
    assert int(flags["--max-num-seqs"]) == max(CONCURRENCIES)
    assert int(flags["--max-num-batched-tokens"]) >= 1.5 * rows, "and prompts"


def test_auto_is_compared_with_the_best_setting_of_each_load() -> None:
    def samples(*speeds: float) -> list[dict[str, float]]:
        return [{"tokens_per_s": speed} for speed in speeds]

    speed = {
        "auto": {"1": samples(90, 99, 180), "2": samples(100), MOVING: samples(100)},
        "AR, by request": {"1": samples(50, 50, 100), "2": samples(100), MOVING: samples(125)},
        "linear, B 8": {"1": samples(100, 100, 180), "2": samples(50), MOVING: samples(100)},
    }
    lines = modes_report.auto_table({"plan": {"concurrencies": [1, 2]}, "speed": speed}).splitlines()
    assert lines[0] == "|  | 1 | 2 | moving |"
    assert lines[2] == (
        "| auto / best fixed | 0.99 [0.90, 1.00], linear, B 8 | 1.00 [1.00, 1.00], AR, by request "
        "| 0.80 [0.80, 0.80], AR, by request |"
    )
    assert lines[3].startswith("| auto / AR, by request | 1.80 [1.80, 1.98] |")


def test_rows_of_a_round_next_to_what_they_yield() -> None:
    quality = {"linear, B 32": (8.0, 4.0), "linear, tree of 31": (10.0, 5.0), "quadratic, B 16, 4 groups": (6.0, 5.5)}
    result = {
        "speed": dict.fromkeys(quality, {}),
        "quality": {
            name: dict(zip(("acceptance_length", "tpf"), found, strict=True)) for name, found in quality.items()
        },
    }
    assert modes_report.rows_table(result).splitlines()[2:] == [
        "| linear, B 32 | 64 | 8.00 | 1.00 | 4.00 |",
        "| linear, tree of 31 | 64 | 10.00 | 1.25 | 5.00 |",
        "| quadratic, B 16, 4 groups | 80 | 6.00 | 0.75 | 5.50 |",
    ]
    assert not modes_report.rows_table({"speed": {"linear, B 32": {}}})
