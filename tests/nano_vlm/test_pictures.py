"""Questions about pictures: one right answer, kept apart from training, the same pixels everywhere."""

import hashlib
import itertools
import json
import random
import re
from dataclasses import asdict

import pytest

from vllm_nld.nano_vlm import heldout, question_of
from vllm_nld.nano_vlm.scenes import COLORS, THINGS, Item, draw
from vllm_nld.nano_vlm.split import FILE, render
from vllm_nld.nano_vlm.tasks import SIZES, TASKS, clear, kept_apart, question, stream


def test_heldout_questions_are_what_the_script_draws() -> None:
    assert FILE.read_text(encoding="utf-8") == render()
    assert [question_of(json.loads(json.dumps(asdict(asked)))) for asked in heldout()] == heldout()
    assert {asked.category for asked in heldout()} == set(TASKS) and all(map(clear, heldout()))


def test_training_never_sees_a_heldout_question() -> None:
    trained = list(itertools.islice(stream(seed=0), 300))
    assert not any(map(kept_apart, trained))
    assert all(map(kept_apart, heldout()))
    assert {asked.category for asked in trained} == set(TASKS) and {asked.scene.size for asked in trained} == set(SIZES)


@pytest.mark.parametrize("category", TASKS)
def test_answers_follow_from_the_picture(category: str) -> None:
    """What is drawn says what the answer is, and everything is inside the picture."""
    rng = random.Random(1)
    for _ in range(50):
        asked = question(rng, category, rng.choice(SIZES))
        width, height = asked.scene.size
        for item in asked.scene.items:
            assert item.box[0] >= 0 and item.box[1] >= 0
            assert item.box[2] <= width + 2 and item.box[3] <= height + 2, (asked.category, item)
        texts = [item.text for item in asked.scene.items if item.text]
        if category in ("digits", "words", "table"):
            assert [part for part in asked.expected.replace("|", " ").replace(",", " ").split()] == texts
        elif category == "cell":
            assert asked.expected in texts
        elif category == "json":
            assert [(one["item"], one["color"]) for one in json.loads(asked.expected)] == [
                (item.kind, item.color) for item in asked.scene.items
            ]
        elif category == "count":
            steps, total = asked.expected.split(": ")
            named = re.findall(r"(\w+ \w+)(?: (\d))?", steps)
            assert [name for name, _ in named] == [f"{item.color} {item.kind}" for item in asked.scene.items]
            counted = [item.kind in re.findall(r"\w+", asked.request) for item in asked.scene.items]
            assert [number != "" for _, number in named] == counted
            assert [int(number) for _, number in named if number] == list(range(1, int(total) + 1))


def test_pixels_are_the_same_everywhere() -> None:
    """A fingerprint of all held-out pictures: a change means that they must be drawn, and the model trained, again."""
    digest = hashlib.sha256()
    for asked in heldout():
        digest.update(draw(asked.scene).tobytes())
    assert digest.hexdigest()[:16] == "c2c9ca96c4a87219"


@pytest.mark.parametrize(("kind", "color"), [("horse", "red"), ("ball", "mauve")])
def test_what_nobody_can_draw_is_refused(kind: str, color: str) -> None:
    assert kind not in THINGS or color not in COLORS
    with pytest.raises(ValueError, match="nobody can draw"):
        Item(kind, color, (0, 0, 1, 1))
