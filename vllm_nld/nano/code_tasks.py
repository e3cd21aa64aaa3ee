"""Tasks about code: SQL tables and inserts, dataclasses, classes with getters, functions that check their arguments."""

import random

from vllm_nld.nano.task import Task
from vllm_nld.nano.words import ENTITIES, Field, listed, pick_fields

SQL_TYPES = {"str": "TEXT", "int": "INTEGER", "float": "REAL", "bool": "BOOLEAN"}
OPERATIONS = {"plus": "+", "minus": "-", "times": "*"}
ACTIONS = ["add", "compute", "find", "get", "make", "measure"]


def typed(fields: list[Field]) -> str:
    """name str, age int."""
    return ", ".join(f"{field.name} {field.kind}" for field in fields)


def sql_task(rng: random.Random) -> Task:
    """A CREATE TABLE or an INSERT with several rows."""
    table = rng.choice(ENTITIES).lower() + "s"
    if rng.random() < 0.5:
        fields = pick_fields(rng, 3, 6)
        lines = ["  id INTEGER PRIMARY KEY", *(f"  {field.name} {SQL_TYPES[field.kind]} NOT NULL" for field in fields)]
        request = rng.choice(
            [
                f"Write SQL that creates the table {table} with {typed(fields)}.",
                f"SQL table {table} with columns {typed(fields)}.",
            ]
        )
        answer = f"CREATE TABLE {table} (\n" + ",\n".join(lines) + "\n);"
        return Task("sql", request, answer, f"Create {table} with an id and {len(fields)} columns.")
    fields = pick_fields(rng, 2, 4)
    rows = [[field.draw(rng) for field in fields] for _ in range(rng.randint(2, 4))]
    lines = [
        "  (" + ", ".join(f"'{v}'" if field.kind == "str" else v for field, v in zip(fields, row, strict=True)) + ")"
        for row in rows
    ]
    names = [field.name for field in fields]
    given = "; ".join(", ".join(row) for row in rows)
    request = f"Write SQL that inserts into {table} with columns {listed(names)}: {given}."
    answer = f"INSERT INTO {table} ({', '.join(names)}) VALUES\n" + ",\n".join(lines) + ";"
    return Task("sql", request, answer, f"Insert {len(rows)} rows into {table}.")


def dataclass_task(rng: random.Random) -> Task:
    """A Python dataclass, frozen or not."""
    entity, fields = rng.choice(ENTITIES), pick_fields(rng, 3, 6)
    frozen = rng.random() < 0.4
    kind = "frozen dataclass" if frozen else "dataclass"
    request = rng.choice(
        [
            f"Write a Python {kind} {entity} with {typed(fields)}.",
            f"Python {kind} named {entity}, fields {typed(fields)}.",
        ]
    )
    lines = [f"    {field.name}: {field.kind}" for field in fields]
    decorator = "@dataclass(frozen=True)" if frozen else "@dataclass"
    answer = f"from dataclasses import dataclass\n\n\n{decorator}\nclass {entity}:\n" + "\n".join(lines)
    return Task("dataclass", request, answer, f"A {kind} with {len(fields)} fields.")


def class_task(rng: random.Random) -> Task:
    """A Python class with an initialiser and a getter for each field."""
    entity, fields = rng.choice(ENTITIES), pick_fields(rng, 2, 4)
    names = [field.name for field in fields]
    init = "\n".join(
        [f"    def __init__(self, {', '.join(names)}):", *(f"        self.{name} = {name}" for name in names)]
    )
    getters = [f"    def get_{name}(self):\n        return self.{name}" for name in names]
    request = rng.choice(
        [
            f"Write a Python class {entity} with getters for {listed(names)}.",
            f"Python class {entity} that holds {listed(names)}, with getters.",
        ]
    )
    return Task(
        "class", request, "\n\n".join([f"class {entity}:\n{init}", *getters]), f"An init and {len(names)} getters."
    )


def function_task(rng: random.Random) -> Task:
    """A Python function that refuses negative arguments."""
    fields = [field for field in pick_fields(rng, 14, 18) if field.kind in ("int", "float")][: rng.randint(2, 3)]
    names = [field.name for field in fields]
    words = [rng.choice(list(OPERATIONS)) for _ in names[1:]]
    name = f"{rng.choice(ACTIONS)}_{rng.choice(ENTITIES).lower()}"
    spoken = names[0] + "".join(f" {word} {operand}" for word, operand in zip(words, names[1:], strict=True))
    formula = names[0] + "".join(
        f" {OPERATIONS[word]} {operand}" for word, operand in zip(words, names[1:], strict=True)
    )
    checks = [f'    if {arg} < 0:\n        raise ValueError("{arg} must not be negative")' for arg in names]
    request = rng.choice(
        [
            f"Write a Python function {name}({', '.join(names)}) that returns {spoken} and refuses negative values.",
            f"Python function {name} with arguments {listed(names)}: check for negative values, return {spoken}.",
        ]
    )
    answer = "\n".join([f"def {name}({', '.join(names)}):", *checks, f"    return {formula}"])
    return Task("function", request, answer, f"Check {len(names)} arguments and return {formula}.")
