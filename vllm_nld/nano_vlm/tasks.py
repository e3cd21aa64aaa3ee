"""Questions about pictures, kept apart by a hash of picture and request: training, and held out.

    for question in stream(seed=0):                # endless, deterministic, training side only
    held = draw_heldout(per_category=20)           # what heldout.jsonl holds

Pictures have three sizes, so that a training batch can be of one size.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict

from vllm_nld.nano.prompts import is_heldout
from vllm_nld.nano.words import ANIMALS, FRUITS, listed
from vllm_nld.nano.words import THINGS as OBJECTS
from vllm_nld.nano_vlm.scenes import COLORS, TEXT, THINGS, Item, Question, Scene

SIZES = ((64, 48), (48, 48), (96, 48))
CELL = 16  # pixels between things
LETTER, LINE = 6, 11  # size of a letter
INK = ("black", "blue", "red", "purple")  # colors in which letters are easy to read
WORDS = [word for word in (*ANIMALS, *FRUITS, *OBJECTS) if len(word) <= 6]


def things(rng: random.Random, size: tuple[int, int], most: int) -> list[Item]:
    """A few things in different places, in reading order."""
    places = [(x, y) for y in range(0, size[1], CELL) for x in range(0, size[0], CELL)]
    chosen = sorted(rng.sample(places, rng.randint(1, most)), key=lambda place: (place[1], place[0]))
    items = []
    for x, y in chosen:
        left, top = x + rng.randint(0, 2), y + rng.randint(0, 2)
        items.append(Item(rng.choice(THINGS), rng.choice(list(COLORS)), (left, top, left + 12, top + 12)))
    return items


def letters(rng: random.Random, size: tuple[int, int], lines: list[str]) -> list[Item]:
    """Lines of text, anywhere they fit."""
    room = size[1] // len(lines)
    items = []
    for index, line in enumerate(lines):
        left = rng.randint(0, max(size[0] - LETTER * len(line) - 2, 0))
        top = index * room + rng.randint(0, max(room - LINE - 1, 0))
        items.append(Item(TEXT, rng.choice(INK), (left, top, left + LETTER * len(line), top + LINE), line))
    return items


def shapes(rng: random.Random, size: tuple[int, int]) -> tuple[str, str, list[Item]]:
    items = things(rng, size, 4)
    request = rng.choice(("What is in the picture?", "List the things in the picture."))
    return request, listed([f"{item.color} {item.kind}" for item in items]), items


def as_json(rng: random.Random, size: tuple[int, int]) -> tuple[str, str, list[Item]]:
    items = things(rng, size, 4)
    request = rng.choice(("Write the picture as JSON.", "Make a JSON list of the picture."))
    return request, json.dumps([{"item": item.kind, "color": item.color} for item in items]), items


def count(rng: random.Random, size: tuple[int, int]) -> tuple[str, str, list[Item]]:
    items = things(rng, size, 6)
    found = Counter(item.kind for item in items)
    request = rng.choice(("Count the things in the picture.", "How many of each item are in the picture?"))
    return request, "\n".join(f"{kind}: {found[kind]}" for kind in THINGS if found[kind]), items


def digits(rng: random.Random, size: tuple[int, int]) -> tuple[str, str, list[Item]]:
    number = str(rng.randint(10, 10 ** rng.randint(3, 6) - 1))
    request = rng.choice(("Which number is in the picture?", "Read the number."))
    return request, number, letters(rng, size, [number])


def word(rng: random.Random, size: tuple[int, int]) -> tuple[str, str, list[Item]]:
    lines = rng.sample(WORDS, rng.randint(1, 3))
    return (
        rng.choice(("Which words are in the picture?", "Read the words.")),
        ", ".join(lines),
        letters(rng, size, lines),
    )


def cells(rng: random.Random, size: tuple[int, int]) -> tuple[list[list[str]], list[Item]]:
    """A table of numbers, and what is drawn for it."""
    rows, columns = rng.randint(2, size[1] // 14), rng.randint(2, size[0] // 16)
    table = [[str(rng.randint(0, 99)) for _ in range(columns)] for _ in range(rows)]
    width, height, color = size[0] // columns, size[1] // rows, rng.choice(INK)
    items = []
    for y, row in enumerate(table):
        for x, value in enumerate(row):
            left, top = x * width + 2, y * height + 1
            items.append(Item(TEXT, color, (left, top, left + LETTER * len(value), top + LINE), value))
    return table, items


def table(rng: random.Random, size: tuple[int, int]) -> tuple[str, str, list[Item]]:
    rows, items = cells(rng, size)
    request = rng.choice(("Write the table in the picture.", "Make a table of the picture."))
    return request, "\n".join(f"| {' | '.join(row)} |" for row in rows), items


def cell(rng: random.Random, size: tuple[int, int]) -> tuple[str, str, list[Item]]:
    rows, items = cells(rng, size)
    y, x = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    return f"What is in row {y + 1}, column {x + 1} of the table?", rows[y][x], items


Task = Callable[[random.Random, tuple[int, int]], tuple[str, str, list[Item]]]
# task and its share of the stream
TASKS: dict[str, tuple[Task, float]] = {
    "shapes": (shapes, 1.2),
    "json": (as_json, 1.2),
    "count": (count, 1.2),
    "digits": (digits, 1.0),
    "words": (word, 1.6),
    "table": (table, 1.6),
    "cell": (cell, 1.2),
}


def question(rng: random.Random, category: str, size: tuple[int, int]) -> Question:
    """One question of a category, from either side of the split."""
    request, answer, items = TASKS[category][0](rng, size)
    return Question(category, request, answer, Scene(size, tuple(items)))


def kept_apart(asked: Question) -> bool:
    """Whether a question is held out, by what its picture shows and what is asked."""
    return is_heldout(json.dumps(asdict(asked.scene)) + asked.request)


def stream(seed: int, size: tuple[int, int] | None = None) -> Iterator[Question]:
    """Endless training questions, of one picture size or of all; the same seed gives the same ones."""
    rng = random.Random(seed)
    categories, shares = list(TASKS), [share for _, share in TASKS.values()]
    while True:
        asked = question(rng, rng.choices(categories, shares)[0], size or rng.choice(SIZES))
        if not kept_apart(asked):
            yield asked


def draw_heldout(per_category: int = 20, seed: int = 2026) -> list[Question]:
    """The held-out questions, the same number of each category, no two alike."""
    rng, found = random.Random(seed), []
    for category in TASKS:
        chosen: dict[Question, None] = {}
        while len(chosen) < per_category:
            asked = question(rng, category, rng.choice(SIZES))
            if kept_apart(asked):
                chosen.setdefault(asked)
        found += list(chosen)
    return found
