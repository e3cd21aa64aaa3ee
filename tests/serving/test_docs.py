"""The README's tables of modes, request fields and settings match the code."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from vllm_nld.serving.modes import AUTO, DEFAULT, MODES
from vllm_nld.serving.settings import Settings

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def rows(header: str) -> dict[str, list[str]]:
    """A table of the README, by the names in each row's first cell. A row with two names appears twice."""
    lines = README[README.index(header) :].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[: lines.index("")]]
    return {name: row[1:] for row in cells for name in re.findall(r"`(\w+)`", row[0])}


def test_every_mode_has_a_row() -> None:
    table = rows("| mode | what it does |")
    assert set(MODES) <= table.keys()
    assert f"| `{DEFAULT}` (default) |" in README


@pytest.mark.parametrize("name", MODES)
def test_fields_are_listed_with_their_modes(name: str) -> None:
    table = rows("| field | modes |")
    listed = {field for field, cells in table.items() if name in cells[0].split(", ")}
    assert listed == set(MODES[name].fields)
    assert all(f"`{mode}`" in " ".join(table["nld_mode"]) for mode in (*MODES, AUTO))


def test_settings_are_listed_with_their_defaults() -> None:
    table = rows("| `--additional-config '{\"nld\": {...}}'` | default |")
    assert table.keys() == {field.name for field in fields(Settings)}
    for field in fields(Settings):
        if field.default not in (None, "auto"):
            assert table[field.name][0].strip("`") == f"{field.default:g}", field.name
