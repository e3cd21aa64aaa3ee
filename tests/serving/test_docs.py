"""The tables of modes and request fields match the code, links lead somewhere, and every command can be called."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_nld.serving.modes import AUTO, DEFAULT, MODES
from vllm_nld.tools.cli import COMMANDS, parser_of

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


def blocks(text: str) -> Iterator[str]:
    """Indented and fenced blocks."""
    yield from re.findall(r"^ {4}.*$", text, re.MULTILINE)
    yield from re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[str]:
    """The `vllm-nld …` commands of a page: lines of blocks, continued ones joined, and words in backticks."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    yield from re.findall(r"^(?: {4})?vllm-nld (.+)$", "\n".join(blocks(text)), re.MULTILINE)
    yield from re.findall(r"`vllm-nld ([^`]+)`", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_can_be_called(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in commands(page):
        words = shlex.split(line.partition(" && ")[0].replace(" … ", " "), comments=True)
        name = next((name for n in (2, 1) if (name := " ".join(words[:n])) in COMMANDS), None)
        if name is None:
            assert any(known.startswith(line + " ") for known in COMMANDS), f"vllm-nld {line}"
        elif len(words) > len(name.split()):  # more than the command's name alone
            try:
                parser_of(name).parse_args(words[len(name.split()) :])
            except SystemExit:
                pytest.fail(f"vllm-nld {line}: {capsys.readouterr().err}")


def test_the_plan_has_a_command_for_each_step() -> None:
    page = (ROOT / "docs/evaluate.md").read_text(encoding="utf-8")
    lines = [line for line in page[page.index("## 30, 60, 90 days") :].splitlines() if line.startswith("|")][2:]
    starts = ("`vllm-nld ", "`python -m ", "`lm_eval ")
    assert len(lines) >= 12 and all(line.split("|")[3].strip().startswith(starts) for line in lines)


def test_who_it_is_for_and_what_it_gains_come_first() -> None:
    """With published figures marked as such, and the words of a table before the table."""
    first = "\n".join(README.splitlines()[:10])
    for words in ("It is for", "**Published**", "never run", "huggingface.co/nvidia/Nemotron-Labs-Diffusion-8B"):
        assert words in first, words
    for word in ("TPF", "AL", "NFE"):
        assert README.index(f"**{word}**" if word != "AL" else "(AL)") < README.index("| mode |")
