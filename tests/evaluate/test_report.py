"""Figures, words and files of a report, from simulated answers."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.simulated import CONCURRENCY, TOKENS, rows_of, simulate
from tests.scale import scaled
from vllm_nld.evaluate.counts import Counts
from vllm_nld.evaluate.differences import most
from vllm_nld.evaluate.figures import ALL, Figures, figures, frame, turns
from vllm_nld.evaluate.report import NO_TEXTS, Subject, write
from vllm_nld.evaluate.run import ANSWER, LEAST, split
from vllm_nld.evaluate.statistics import LEVEL
from vllm_nld.evaluate.words import choose, paragraphs

FAULTS = {"ar": 0.0, "linear": 0.0, "diffusion": 0.3}
REPEATS = scaled(20)


def found_of(folder: Path, **options: Any) -> tuple[Figures, Any, Any, Any]:
    store, rows, variants = simulate(folder, **{"faults": FAULTS, **options})
    taken = turns(store, variants, rows)
    return figures(frame(rows, variants, store), taken, "ar", gpus=2, price=3.6), store, rows, variants


def test_figures_of_known_answers(tmp_path: Path) -> None:
    found, _, rows, _ = found_of(tmp_path)
    ar, linear = found[ALL]["ar"], found[ALL]["linear"]
    assert ar["rows"] == ar["checked"] == 120 and ar["tokens"] == 120 * TOKENS
    assert 0.8 < ar["accuracy"][0] < 0.97 and linear["accuracy"] == ar["accuracy"]
    assert linear["agreement"][0] == 1 and linear["against"]["p"] == 1 and not linear["against"]["significant"]
    assert ar["tpf"] == (1, 1, 1) and linear["tpf"][0] == pytest.approx(2)
    assert linear["acceptance_length"][0] == 4 and ar["acceptance_length"] is None
    assert linear["by_position"] == {"1": 1.0, "2": 0.75, "4": 0.5}
    assert linear["committed"] / linear["rolled_back"] == pytest.approx(3 / 4)
    assert ar["e2e"]["p95"][0] == 1 and linear["ttft"]["p50"][0] == 0.05 and ar["itl"]["p95"][0] == pytest.approx(0.01)
    assert linear["speedup"][0] == pytest.approx(2, rel=0.03) and linear["speedup"][1] > 1.9
    assert ar["gpu_seconds"][0] == pytest.approx(2 / CONCURRENCY, rel=0.02), "two GPUs"
    assert ar["cost"][0] == pytest.approx(ar["gpu_seconds"][0] * 3.6 / 3600)
    assert {tag: found[tag]["ar"]["rows"] for tag in found} == {ALL: 120, "hard": 60, "easy": 60}


def test_wrong_mode_is_found_and_ar_against_itself_is_not(tmp_path: Path) -> None:
    for seed in range(REPEATS):
        folder = tmp_path / str(seed)
        found, *_ = found_of(folder, faults={"ar": 0.0, "linear": 0.0, "diffusion": 0.3}, seed=seed)
        assert found[ALL]["diffusion"]["against"]["significant"], seed
        assert found[ALL]["diffusion"]["against"]["p"] <= LEVEL
        assert not found[ALL]["linear"]["against"]["significant"]
        assert choose(found[ALL], "ar") == "linear"


def test_words_recommend_by_tag_and_warn(tmp_path: Path) -> None:
    """diffusion is right on easy prompts and wrong on hard ones."""
    found, _, _, variants = found_of(tmp_path, hard_only=True)
    assert choose(found["easy"], "ar") == "diffusion" and choose(found["hard"], "ar") == "linear"
    text = "\n".join(paragraphs(found, variants, "ar"))
    assert text.startswith('Use `linear` (`--additional-config \'{"nld": {"mode": "linear"}}\'`)')
    assert "For “easy” use `diffusion` instead." in text
    assert re.search(r"`diffusion` \(2\.\d+ times as fast\) answers [\d.]+ points fewer correctly \(p", text)


def test_words_stay_with_the_baseline_if_nothing_is_faster(tmp_path: Path) -> None:
    found, _, _, variants = found_of(tmp_path, faults={"ar": 0.0, "diffusion": 0.4})
    assert paragraphs(found, variants, "ar")[0].startswith("Use `ar`: no other mode was faster")


def test_words_recommend_nothing_after_a_single_turn(tmp_path: Path) -> None:
    """A slow moment would have hit one mode alone."""
    found, _, _, variants = found_of(tmp_path, count=LEAST)
    assert found[ALL]["linear"]["speedup"][1] > 1 and found[ALL]["linear"]["pairs"] == 1
    assert paragraphs(found, variants, "ar")[0].startswith("Use `ar`: no other mode was faster than it beyond doubt")


def test_words_name_what_a_person_must_check(tmp_path: Path) -> None:
    store, rows, variants = simulate(tmp_path, FAULTS)
    for variant, changes in (("ar", {}), ("linear", {"finish": "length"}), ("diffusion", {})):
        for row in rows[:3]:
            stored = {**store.get((ANSWER, variant, row.name)), "correct": None, **changes}
            store.put((ANSWER, variant, row.name), stored)
    found = figures(frame(rows, variants, store), turns(store, variants, rows), "ar")
    text = "\n".join(paragraphs(found, variants, "ar"))
    assert "3 of 120 prompts whose answers nothing checked" in text and "3 answers that were cut" in text


class Page(HTMLParser):
    """What a page refers to, its headings, and whether its tags are closed."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.headings: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.mark.parametrize("texts", [True, False])
def test_report_files(texts: bool, tmp_path: Path) -> None:
    found, store, rows, variants = found_of(tmp_path)
    pairs = most(rows, variants, store, "ar", 10)
    assert len(pairs) == 10 and all(pair.variant == "diffusion" for pair in pairs)
    subject = Subject("nano <8B>", "x.jsonl", 120, 4, "ar", price=3.6, problems=("line 3: not JSON",))
    write(tmp_path / "out", subject, found, variants, pairs if texts else None)
    markdown = (tmp_path / "out/report.md").read_text()
    html = (tmp_path / "out/report.html").read_text()
    page = Page(html)
    assert page.open == [] and page.references and all(url.startswith("data:image/svg+xml") for url in page.references)
    assert not {"script", "link"} & page.tags and "@import" not in html and "url(" not in html
    assert page.headings == re.findall("^## (.+)", markdown, re.MULTILINE)
    assert "Where modes differ most from ar" in page.headings and "Problems of the prompt file" in page.headings
    assert "&lt;8B&gt;" in html
    for file in re.findall(r"\]\((.+?)\)", markdown):
        assert (tmp_path / "out" / file).stat().st_size > 1000
    question = rows[int(pairs[0].row)].question
    assert (question in html and question in markdown) is texts and (NO_TEXTS in html) is not texts
    kept = json.loads((tmp_path / "out/report.json").read_text())
    assert kept["figures"][ALL]["ar"]["rows"] == 120


def test_sides_that_changed_the_verdict_come_first(tmp_path: Path) -> None:
    store, rows, variants = simulate(tmp_path, FAULTS)
    changed = [pair.correct[0] != pair.correct[1] for pair in most(rows, variants, store, "ar", 100)]
    assert changed == sorted(changed, reverse=True) and changed[0]


def test_turns_are_of_one_tag_if_there_are_enough_rows() -> None:
    rows = rows_of(60)
    assert {len({row.tags for row in turn}) for turn in split(rows, 4)} == {1}
    assert len(split(rows, 40)) == 1, "too few of each tag for 40 clients"
    assert all(len(turn) <= max(LEAST, 16) for turn in split(rows, 4))
    assert sorted(row.name for turn in split(rows, 4) for row in turn) == sorted(row.name for row in rows)


def test_counts_add_up() -> None:
    one = Counts(requests=1, tokens=8, forwards=4, steps=2, verified=8, lengths={"4": 1, "+Inf": 2})
    assert (one + one - one) == one and one.tpf == 2 and one.acceptance_length == 4 and one.by_position == {4: 0.5}
    assert Counts().tpf is None and Counts().by_position == {}
