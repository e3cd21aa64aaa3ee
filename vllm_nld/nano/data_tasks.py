"""Tasks about data: JSON, markdown tables, YAML, counting, lists, and copying a text with one word changed.

Each function draws one task; the answer follows from the request alone, so that exact match is well defined.
"""

import random

from vllm_nld.nano.task import Task
from vllm_nld.nano.words import (
    ADJECTIVES,
    ANIMALS,
    CITIES,
    ENTITIES,
    FRUITS,
    NAMES,
    PLACES,
    THINGS,
    VERBS,
    Field,
    listed,
    pick_fields,
)


def quoted(field: Field, value: str) -> str:
    """The value as JSON writes it."""
    return f'"{value}"' if field.kind == "str" else value


def draw_rows(rng: random.Random, fields: list[Field], low: int, high: int) -> list[list[str]]:
    """Values for between `low` and `high` records."""
    return [[field.draw(rng) for field in fields] for _ in range(rng.randint(low, high))]


def rows_text(rows: list[list[str]]) -> str:
    """Records as a request writes them."""
    return "; ".join(", ".join(row) for row in rows)


def json_task(rng: random.Random) -> Task:
    """One indented object, or a list of one-line objects."""
    entity = rng.choice(ENTITIES)
    if rng.random() < 0.4:
        fields = pick_fields(rng, 4, 7)
        values = [field.draw(rng) for field in fields]
        given = ", ".join(f"{field.name} {value}" for field, value in zip(fields, values, strict=True))
        lines = [f'  "{field.name}": {quoted(field, value)}' for field, value in zip(fields, values, strict=True)]
        request = rng.choice(
            [f"Write one JSON object for this {entity}: {given}.", f"{entity} as a JSON object: {given}."]
        )
        return Task("json", request, "{\n" + ",\n".join(lines) + "\n}", f"One object with {len(fields)} keys.")
    fields = pick_fields(rng, 2, 4)
    rows = draw_rows(rng, fields, 2, 4)
    lines = [
        "  {"
        + ", ".join(f'"{field.name}": {quoted(field, value)}' for field, value in zip(fields, row, strict=True))
        + "}"
        for row in rows
    ]
    names = listed([field.name for field in fields])
    request = rng.choice(
        [
            f"Write a JSON list of {entity} objects with {names}: {rows_text(rows)}.",
            f"Give me a JSON list with keys {names}, one object for each {entity}: {rows_text(rows)}.",
        ]
    )
    return Task(
        "json", request, "[\n" + ",\n".join(lines) + "\n]", f"A list of {len(rows)} objects with {len(fields)} keys."
    )


def table_task(rng: random.Random) -> Task:
    """A markdown table."""
    fields = pick_fields(rng, 2, 4)
    rows = draw_rows(rng, fields, 2, 5)
    names = [field.name for field in fields]
    table = [names, ["---"] * len(names), *rows]
    request = rng.choice(
        [
            f"Make a markdown table with columns {listed(names)} and rows {rows_text(rows)}.",
            f"Put this into a markdown table with the columns {listed(names)}: {rows_text(rows)}.",
        ]
    )
    answer = "\n".join("| " + " | ".join(row) + " |" for row in table)
    return Task("table", request, answer, f"A table with {len(names)} columns and {len(rows)} rows.")


def yaml_task(rng: random.Random) -> Task:
    """JSON in, YAML out."""
    fields = pick_fields(rng, 3, 5)
    rows = draw_rows(rng, fields, 2, 3)
    objects = [
        "{"
        + ", ".join(f'"{field.name}": {quoted(field, value)}' for field, value in zip(fields, row, strict=True))
        + "}"
        for row in rows
    ]
    items = [
        "- " + "\n  ".join(f"{field.name}: {value}" for field, value in zip(fields, row, strict=True)) for row in rows
    ]
    request = rng.choice(["Convert this JSON to YAML: ", "Write this as YAML: "]) + "[" + ", ".join(objects) + "]"
    return Task("yaml", request, "\n".join(items), f"A list of {len(rows)} items with {len(fields)} keys.")


def count_task(rng: random.Random) -> Task:
    """A counting sequence, separated by commas or one number a line."""
    step = rng.choice([1, 1, 1, 2, 5, 10])
    first = rng.randint(0, 150) if step == 1 else step * rng.randint(0, 120 // step)
    numbers = list(range(first, first + step * rng.randint(10, 26), step))
    across = rng.random() < 0.6
    way = "" if step == 1 else f" in steps of {step}"
    shape = (
        rng.choice([" with commas", ", separated by commas"])
        if across
        else rng.choice([", one a line", ", each on a line"])
    )
    request = (
        f"{rng.choice(['Count', 'Count up', 'Write the numbers'])} from {numbers[0]} to {numbers[-1]}{way}{shape}."
    )
    answer = (", " if across else "\n").join(map(str, numbers))
    return Task("count", request, answer, f"From {numbers[0]} to {numbers[-1]} in steps of {step}.")


def list_task(rng: random.Random) -> Task:
    """A numbered list, a checklist, or one word a number of times."""
    words = rng.choice([FRUITS, ANIMALS, THINGS, PLACES, CITIES, NAMES])
    if rng.random() < 0.25:
        word, times = rng.choice(words), rng.randint(5, 12)
        request = f"Write a numbered list that has the word {word} {times} times."
        return Task("list", request, numbered([word] * times), f"The word {word} {times} times.")
    items = rng.sample(words, rng.randint(6, 12))
    if rng.random() < 0.5:
        request = rng.choice(["Number these items: ", "Make a numbered list of "]) + ", ".join(items) + "."
        return Task("list", request, numbered(items), f"A numbered list from {items[0]} to {items[-1]}.")
    request = rng.choice(["Make a checklist of ", "Write a checklist with "]) + ", ".join(items) + "."
    return Task(
        "list", request, "\n".join(f"- [ ] {item}" for item in items), f"A checklist from {items[0]} to {items[-1]}."
    )


def numbered(items: list[str]) -> str:
    """1. a, 2. b and so on, one a line."""
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, start=1))


def edit_task(rng: random.Random) -> Task:
    """A few sentences copied with one word replaced wherever it stands."""
    cast = rng.sample(ANIMALS + NAMES[:24], 2)
    sentences = [
        f"The {rng.choice(ADJECTIVES)} {rng.choice(cast)} {rng.choice(VERBS)} the {rng.choice(ADJECTIVES)} "
        f"{rng.choice(THINGS)} {rng.choice(['in', 'near', 'behind'])} the {rng.choice(PLACES)}."
        for _ in range(rng.randint(3, 5))
    ]
    text = " ".join(sentences)
    old = rng.choice([word for word in cast if f" {word} " in text])
    new = rng.choice([word for word in ANIMALS if word not in cast])
    request = rng.choice(
        [f"Replace {old} with {new}: {text}", f"Copy this text but write {new} instead of {old}: {text}"]
    )
    return Task("edit", request, text.replace(f" {old} ", f" {new} "), f"Copy it and write {new} for {old}.")
