"""nano-vlm: nano with a tiny vision tower, its training recipe, and held-out questions about pictures.

It answers about pictures that a script draws: things and their colors, how many there are, digits, words, tables.
Importing this costs nothing: torch and Pillow come in only with training, drawing and measuring.

    path = checkpoint_path()                       # a folder that `vllm serve` takes
    for question in heldout():
        draw(question.scene), question.request, question.expected
"""

import json
from pathlib import Path

from vllm_nld.nano_vlm.scenes import Item, Question, Scene

__all__ = ["Question", "Scene", "checkpoint_path", "heldout"]


def checkpoint_path() -> Path:
    """The folder of the checkpoint, in the Hugging Face layout."""
    return Path(__file__).parent / "checkpoint"


def heldout() -> list[Question]:
    """Questions about pictures that were never trained on, with the one right answer to each."""
    lines = (Path(__file__).parent / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    return [question_of(json.loads(line)) for line in lines]


def question_of(row: dict) -> Question:  # type: ignore[type-arg]  # a JSON object
    """A question from its JSON form."""
    scene = row["scene"]
    items = tuple(Item(**{**item, "box": tuple(item["box"])}) for item in scene["items"])
    return Question(row["category"], row["request"], row["expected"], Scene(tuple(scene["size"]), items))
