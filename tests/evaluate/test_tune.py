"""Successive halving: rungs, what survives, and the flag at the end."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from vllm_nld.evaluate.halving import LEAST, Target, meets, misses, rungs, survivors, winner
from vllm_nld.evaluate.plots import draw
from vllm_nld.evaluate.report import publish
from vllm_nld.evaluate.sections import Section
from vllm_nld.evaluate.tune import BLOCKS, MODES, THRESHOLDS, grid, settings_table, words
from vllm_nld.evaluate.variant import Variant
from vllm_nld.serving.settings import Settings

TARGET = Target(within=0.02)


def row(difference: float, width: float, speed: float, p95: float = 1.0, checked: bool = True) -> dict[str, Any]:
    pair = {"difference": difference, "low": difference - width, "high": difference + width, "significant": False}
    same = (1 + difference, 1 + difference - width, 1 + difference + width)
    return {
        "against": pair if checked else None,
        "agreement": same,
        "speedup": (speed, speed, speed),
        "e2e": {"p95": (p95, 0.9 * p95, 1.1 * p95)},
        "rows": 100,
        "tpf": None,
    }


MINE = {
    "exact": row(0.0, 0.01, 1.5),
    "good": row(-0.01, 0.03, 2.0),
    "doubtful": row(-0.05, 0.04, 3.0),
    "wrong": row(-0.3, 0.05, 4.0),
}


def test_settings_that_miss_the_target_beyond_doubt_are_dropped() -> None:
    assert [name for name in MINE if misses(MINE[name], TARGET)] == ["wrong"]
    assert [name for name in MINE if meets(MINE[name], TARGET)] == ["exact", "good"]
    assert survivors(MINE, list(MINE), TARGET, 4) == ["good", "doubtful", "exact"]
    assert survivors(MINE, list(MINE), TARGET, 1) == ["good"]
    assert winner(MINE, list(MINE), TARGET) == "good"
    assert winner(MINE, ["wrong", "doubtful"], TARGET) is None


def test_latency_may_be_the_target() -> None:
    target = Target(within=0.02, p95=2.0)
    assert meets(row(0, 0.01, 1, p95=1.9), target) and not meets(row(0, 0.01, 1, p95=2.1), target)
    assert misses(row(0, 0.01, 1, p95=3), target) and not misses(row(0, 0.01, 1, p95=2.1), target)


def test_without_checks_texts_must_be_the_baselines() -> None:
    assert meets(row(0, 0.01, 1, checked=False), TARGET) and misses(row(-0.5, 0.1, 1, checked=False), TARGET)


@pytest.mark.parametrize(("candidates", "prompts"), [(18, 200), (12, 100), (3, 50), (1, 50), (2, 8), (18, 8)])
def test_rungs_halve_settings_and_add_prompts(candidates: int, prompts: int) -> None:
    found = rungs(candidates, prompts)
    assert found[0][0] == candidates and found[-1][1] == prompts
    assert found[-1][0] <= 2 or prompts <= LEAST
    assert all(after[0] <= before[0] and after[1] > before[1] for before, after in zip(found, found[1:], strict=False))
    spent = sum(
        keep * (count - before) for (keep, count), before in zip(found, [0, *(c for _, c in found)], strict=False)
    )
    assert spent <= candidates * prompts
    if candidates > 8 and prompts >= 100:
        assert spent < candidates * prompts / 2.5, "most settings answer few prompts"


def test_every_setting_of_the_grid_is_a_servers_setting() -> None:
    candidates = grid((*MODES, "quadratic"), 32)
    assert len({candidate.name for candidate in candidates}) == len(candidates) > 2 * len(THRESHOLDS)
    for candidate in candidates:
        flag, value = shlex.split(candidate.config)
        assert flag == "--additional-config"
        settings = Settings.parse(json.loads(value)["nld"])
        assert settings.mode == candidate.mode
        assert all(getattr(settings, name) == value for name, value in candidate.fields.items())


def test_blocks_are_not_longer_than_the_servers() -> None:
    assert {candidate.fields.get("block_length", 16) for candidate in grid(MODES, 16)} == set(BLOCKS) - {32}
    assert {candidate.fields.get("block_length", 4) for candidate in grid(MODES, 4)} == {4}
    with pytest.raises(ValueError, match="nothing to tune"):
        grid(("ar",), 32)


def test_words_say_what_is_proven() -> None:
    chosen = Variant("diffusion", {"threshold": 0.8, "block_length": 16})
    found = " ".join(words({**MINE, chosen.name: MINE["good"]}, chosen, "ar", TARGET))
    assert '--additional-config \'{"nld": {"mode": "diffusion", "threshold": 0.8, "block_length": 16}}\'' in found
    assert "don't prove the target" in found
    assert "don't prove" not in " ".join(words({chosen.name: MINE["exact"]}, chosen, "ar", TARGET))
    assert "use `ar`" in words(MINE, None, "ar", TARGET)[0]


@pytest.mark.parametrize("options", [{"within": -1}, {"p95": 0}])
def test_targets_that_make_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="target"):
        Target(**options)


def test_report_of_many_settings_has_both_plots(tmp_path: Path) -> None:
    mine = {f"setting {number}": row(-0.01 * number, 0.02, 1 + number, p95=1 / (1 + number)) for number in range(9)}
    for found in mine.values():
        found |= {"accuracy": (0.8, 0.7, 0.9), "tpf": (2.0, 1.9, 2.1), "by_position": {}, "tokens_per_s": None}
    drawn = draw(mine, "setting 0")
    sections = [
        settings_table(mine, "setting 0", dict.fromkeys(mine, 16), TARGET),
        Section("More", "", (), (), "latency"),
    ]
    publish(tmp_path, "tune", {}, title="x", method="y", paragraphs=["z"], sections=sections, drawn=drawn)
    assert set(drawn) == {"accuracy", "latency"}
    page, text = (tmp_path / "tune.html").read_text(), (tmp_path / "tune.md").read_text()
    assert page.count("<img") == text.count("![") == 2 and page.count("<table") == 1 and page.count("<tr>") == 10
    assert text.count("\n| ") == 11 and "\n\n| setting | prompts" in text
