"""The tables of modes and request fields match the code, and links in the documentation lead somewhere."""

import re
from pathlib import Path

import pytest

from vllm_nld.serving.modes import AUTO, DEFAULT, MODES

ROOT = Path(__file__).parents[2]
README, SETTINGS = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/settings.md"))
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")]


def rows(page: str, header: str) -> dict[str, list[str]]:
    """A table of a page, by the names in each row's first cell. A row with two names appears twice."""
    lines = page[page.index(header) :].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[: lines.index("")]]
    return {name: row[1:] for row in cells for name in re.findall(r"`(\w+)`", row[0])}


def test_every_mode_has_a_row() -> None:
    table = rows(README, "| mode | what it does |")
    assert set(MODES) <= table.keys()
    assert f"| `{DEFAULT}` (default) |" in README


@pytest.mark.parametrize("name", MODES)
def test_fields_are_listed_with_their_modes(name: str) -> None:
    table = rows(SETTINGS, "| field | modes |")
    listed = {field for field, cells in table.items() if name in cells[0].split(", ")}
    assert listed == set(MODES[name].fields)
    assert all(f"`{mode}`" in " ".join(table["nld_mode"]) for mode in (*MODES, AUTO))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, link


def test_who_it_is_for_and_what_it_gains_come_first() -> None:
    """With published figures marked as such, and the words of a table before the table."""
    first = "\n".join(README.splitlines()[:10])
    for words in ("It is for", "**Published**", "never run", "huggingface.co/nvidia/Nemotron-Labs-Diffusion-8B"):
        assert words in first, words
    for word in ("TPF", "AL", "NFE"):
        assert README.index(f"**{word}**" if word != "AL" else "(AL)") < README.index("| mode |")
