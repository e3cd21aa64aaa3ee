"""Questions about pictures, kept apart by a hash of picture and request: training, and held out.

    for question in stream(seed=0):                # endless, deterministic, training side only
    held = draw_heldout(per_category=20)           # what heldout.jsonl holds

Pictures have three sizes, so that a training batch can be of one size.
"""

import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict

from vllm_nld.nano.prompts import is_heldout
from vllm_nld.nano.words import ANIMALS, FRUITS, listed
from vllm_nld.nano.words import THINGS as OBJECTS
from vllm_nld.nano_vlm.scenes import COLORS, LETTER, PITCH, TEXT, THINGS, Item, Question, Scene

SIZES = ((64, 48), (48, 48), (96, 48))
PLACE = 16  # pixels between things, and between lines of text
FIRST, COLUMN = 4 * PITCH, 3 * PITCH  # where a table's numbers begin, after a short word, and the width of each
INK = ("black", "blue", "red", "purple")  # colors in which letters are easy to read
WORDS = [word for word in (*ANIMALS, *FRUITS, *OBJECTS) if len(word) <= 6]
SHORT = [word for word in WORDS if len(word) <= 3]  # what a table's rows are about


def thing(rng: random.Random, x: int, y: int, kind: str) -> Item:
    """A thing near a place."""
    left, top = x + rng.randint(0, 2), y + rng.randint(0, 2)
    return Item(kind, rng.choice(list(COLORS)), (left, top, left + 12, top + 12))


def things(rng: random.Random, size: tuple[int, int], kinds: list[str]) -> list[Item]:
    """Things of these kinds in different places, in reading order."""
    places = [(x, y) for y in range(0, size[1], PLACE) for x in range(0, size[0], PLACE)]
    chosen = sorted(rng.sample(places, len(kinds)), key=lambda place: (place[1], place[0]))
    return [thing(rng, x, y, kind) for kind, (x, y) in zip(kinds, chosen, strict=True)]


def some_things(rng: random.Random, size: tuple[int, int]) -> list[Item]:
    """One to four things of any kind."""
    return things(rng, size, rng.choices(THINGS, k=rng.randint(1, 4)))


def letters(rng: random.Random, x: int, y: int, text: str, color: str) -> Item:
    """A line of text near a place."""
    left, top = x + rng.randint(0, 1), y + rng.randint(0, 2)
    return Item(TEXT, color, (left, top, left + PITCH * (len(text) - 1) + LETTER[0], top + LETTER[1]), text)


def lines_of(rng: random.Random, size: tuple[int, int], texts: list[str]) -> list[Item]:
    """Lines of text, one below the other, anywhere they fit."""
    tops = sorted(rng.sample(range(0, size[1], PLACE), len(texts)))
    lefts = [rng.randrange(0, size[0] - PITCH * len(text) + 1, PITCH) for text in texts]
    placed = zip(lefts, tops, texts, strict=True)
    return [letters(rng, left, top, text, rng.choice(INK)) for left, top, text in placed]


def crowd(rng: random.Random, size: tuple[int, int]) -> Scene:
    """Lines full of things, or of words and numbers, which no question is about."""
    items, columns, share = [], size[0] // PITCH, rng.random()
    for y in range(0, size[1], PLACE):
        if rng.random() < 0.4:
            places = [x for x in range(0, size[0], PLACE) if rng.random() < share]
            items += [thing(rng, x, y, rng.choice(THINGS)) for x in places]
            continue
        column = rng.randint(0, 2)
        while column < columns:
            room = columns - column
            words = [word for word in WORDS if len(word) <= room]
            number = str(rng.randrange(10 ** rng.randint(1, min(room, 5))))
            text = rng.choice(words) if words and rng.random() < 0.6 else number
            items.append(letters(rng, column * PITCH, y, text, rng.choice(INK)))
            column += len(text) + rng.randint(1, 2)
    return Scene(size, tuple(items))


def shapes(rng: random.Random, size: tuple[int, int]) -> tuple[str, str, list[Item]]:
    items = some_things(rng, size)
    request = rng.choice(("What is in the picture?", "List the things in the picture."))
    return request, listed([f"{item.color} {item.kind}" for item in items]), items


def as_json(rng: random.Random, size: tuple[int, int]) -> tuple[str, str, list[Item]]:
    items = some_things(rng, size)
    request = rng.choice(("Write the picture as JSON.", "Make a JSON list of the picture."))
    return request, json.dumps([{"color": item.color, "item": item.kind} for item in items]), items


def count(rng: random.Random, size: tuple[int, int]) -> tuple[str, str, list[Item]]:
    """The answer counts along, because a number alone gives a small model too little to learn from."""
    kind, number = rng.choice(THINGS), rng.randint(0, 3)
    kinds = [kind] * number
    kinds += rng.choices([other for other in THINGS if other != kind], k=rng.randint(0 if number else 1, 3))
    rng.shuffle(kinds)
    request = rng.choice((f"How often is a {kind} in the picture?", f"Count this in the picture: {kind}"))
    items, counted = things(rng, size, kinds), itertools.count(1)
    steps = [f"{item.color} {item.kind}" + (f" {next(counted)}" if item.kind == kind else "") for item in items]
    return request, f"{', '.join(steps)}: {number}", items


def digits(rng: random.Random, size: tuple[int, int]) -> tuple[str, str, list[Item]]:
    number = str(rng.randint(10, 10 ** rng.randint(3, 6) - 1))
    request = rng.choice(("Which number is in the picture?", "Read the number."))
    return request, number, lines_of(rng, size, [number])


def word(rng: random.Random, size: tuple[int, int]) -> tuple[str, str, list[Item]]:
    lines = rng.sample(WORDS, rng.randint(1, 3))
    return (
        rng.choice(("Which words are in the picture?", "Read the words.")),
        ", ".join(lines),
        lines_of(rng, size, lines),
    )


def cells(rng: random.Random, size: tuple[int, int]) -> tuple[list[list[str]], list[Item]]:
    """A table, each row of which is a word and one or more numbers, and what is drawn for it."""
    columns, color = rng.randint(1, (size[0] - FIRST + PITCH) // COLUMN), rng.choice(INK)
    names = rng.sample(SHORT, rng.randint(2, size[1] // PLACE))
    rows = [[name, *(str(rng.randint(0, 99)) for _ in range(columns))] for name in names]
    lefts = [0, *range(FIRST, size[0], COLUMN)]
    items = [
        letters(rng, left, y * PLACE, text, color)
        for y, row in enumerate(rows)
        for left, text in zip(lefts, row, strict=False)
    ]
    return rows, items


def table(rng: random.Random, size: tuple[int, int]) -> tuple[str, str, list[Item]]:
    rows, items = cells(rng, size)
    request = rng.choice(("Write the table in the picture.", "Make a table of the picture."))
    return request, "\n".join(f"| {' | '.join(row)} |" for row in rows), items


def cell(rng: random.Random, size: tuple[int, int]) -> tuple[str, str, list[Item]]:
    rows, items = cells(rng, size)
    name, number, *_ = rng.choice(rows)
    return rng.choice((f"Which number is next to {name}?", f"What does the table say about {name}?")), number, items


Task = Callable[[random.Random, tuple[int, int]], tuple[str, str, list[Item]]]
# task and its share of the stream
TASKS: dict[str, tuple[Task, float]] = {
    "shapes": (shapes, 1.0),
    "json": (as_json, 1.0),
    "count": (count, 1.6),
    "digits": (digits, 0.8),
    "words": (word, 1.0),
    "table": (table, 1.2),
    "cell": (cell, 1.2),
}


def question(rng: random.Random, category: str, size: tuple[int, int]) -> Question:
    """One question of a category, from either side of the split."""
    request, answer, items = TASKS[category][0](rng, size)
    return Question(category, request, answer, Scene(size, tuple(items)))


def kept_apart(asked: Question) -> bool:
    """Whether a question is held out, by what its picture shows and what is asked."""
    return is_heldout(json.dumps(asdict(asked.scene)) + asked.request)


def clear(asked: Question) -> bool:
    """Whether no two things in the picture have the same color, so that a color says which one is meant."""
    colors = [item.color for item in asked.scene.items if item.kind != TEXT]
    return len(set(colors)) == len(colors)


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
            if kept_apart(asked) and clear(asked):
                chosen.setdefault(asked)
        found += list(chosen)
    return found
