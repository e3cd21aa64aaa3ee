"""`vllm-nld demo`, as a new user runs it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.scale import SCALE
from vllm_nld.nano import heldout
from vllm_nld.serving.modes import MODES
from vllm_nld.tools import demo
from vllm_nld.tools.cli import main
from vllm_nld.tools.demo import choose, picture_prompts, title
from vllm_nld.tools.server import ServerError

KEYS = {
    "mode",
    "prompt",
    "answer",
    "expected",
    "correct",
    "tokens",
    "nfe",
    "tpf",
    "acceptance_length",
    "tokens_per_s",
}


def test_prompts_have_different_categories() -> None:
    chosen = choose(heldout(), 6)
    assert len({prompt.category for prompt in chosen}) == len(chosen) == 6


def test_questions_about_pictures_are_prompts() -> None:
    chosen = choose(picture_prompts(), 7)
    assert len({prompt.category for prompt in chosen}) == 7
    image, text = chosen[0].messages[0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert title(chosen[0]) == f"[picture] {text['text']}" and chosen[0].expected


def test_demo_and_cpu_image_use_one_unbound_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Several wait for each other where something else runs."""
    found: dict[str, str] = {}

    def server(*arguments: Any, environment: dict[str, str], **options: Any) -> None:
        found.update(environment)
        raise ServerError("seen enough")

    monkeypatch.setattr(demo, "Server", server)
    for name in demo.ONE_THREAD:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ServerError):
        demo.serve_and_ask(tmp_path, [], tmp_path / "log")
    assert found["OMP_NUM_THREADS"] == "1" and found["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    image = (Path(__file__).parents[2] / "deploy/docker/cpu.Dockerfile").read_text()
    assert "ENV OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind\n" in image


@pytest.mark.server
@pytest.mark.parametrize(
    "options",
    [
        [],
        pytest.param(["--vlm"], marks=pytest.mark.skipif(SCALE <= 1, reason="one more server: set NLD_TEST_SCALE=2")),
    ],
    ids=["nano", "nano-vlm"],
)
def test_demo_answers_correctly_and_writes_json(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--json", str(tmp_path / "demo.json"), *options]) == 0
    told = capsys.readouterr().out
    assert told.count("Starting vllm serve on nano") == 1, "it counts seconds on a terminal only"
    rows = json.loads((tmp_path / "demo.json").read_text())
    assert all(row.keys() == KEYS for row in rows)
    assert sum(row["correct"] for row in rows) > len(rows) / 2
    assert all(row["answer"] in told for row in rows)
    by_mode = {mode: [row for row in rows if row["mode"] == mode] for mode in MODES}
    ar = by_mode.pop("ar")
    assert all(row["nfe"] == row["tokens"] and row["tpf"] == 1 and row["acceptance_length"] is None for row in ar)
    for mode, answers in by_mode.items():
        assert [row["prompt"] for row in answers] == [row["prompt"] for row in ar]
        assert sum(row["tokens"] for row in answers) > 1.3 * sum(row["nfe"] for row in answers), mode
        if not MODES[mode].takes_blocks:
            assert sum(a["answer"] == b["answer"] for a, b in zip(ar, answers, strict=True)) >= len(ar) - 1
