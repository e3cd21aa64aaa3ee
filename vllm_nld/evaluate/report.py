"""Writes a report: report.md with its plots, report.html that needs nothing else, and report.json for `compare`.

write(folder, Subject(...), figures, pairs)
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_nld.evaluate import plots, sections, words
from vllm_nld.evaluate.differences import Pair
from vllm_nld.evaluate.figures import ALL, Figures
from vllm_nld.evaluate.sections import Section, is_bold, parts
from vllm_nld.evaluate.variant import Variant

NO_TEXTS = "The texts were left out of this report."
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Subject:
    """What was evaluated, and how. problems: of the prompt file. price: of a GPU hour."""

    model: str
    prompts: str
    rows: int
    concurrency: int
    baseline: str
    server: str = ""
    gpus: float = 1
    price: float | None = None
    currency: str = "$"
    problems: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.model}: modes compared on {self.rows} prompts"

    @property
    def method(self) -> str:
        """How the figures came about."""
        parts = [
            f"{self.rows} prompts of {self.prompts}, {self.concurrency} requests at a time. All modes answered the "
            "same prompts in alternating turns; nothing else ran in a mode's turn. Square brackets: 95 % intervals."
        ]
        if self.price is not None:
            parts.append(
                f"Cost: {self.gpus:g} GPU{'s' if self.gpus != 1 else ''} at {self.currency}{self.price:g} an hour."
            )
        return " ".join([*parts, self.server]).strip()


def write(
    folder: Path, subject: Subject, found: Figures, variants: Sequence[Variant], pairs: Sequence[Pair] | None
) -> list[Path]:
    """Write the report; its files. pairs: None leaves texts out."""
    kept = {"subject": asdict(subject), "variants": {v.name: v.settings for v in variants}, "figures": found}
    return publish(
        folder,
        "report",
        kept,
        title=subject.title,
        method=subject.method,
        paragraphs=words.paragraphs(found, variants, subject.baseline),
        sections=sections.sections(found, subject.baseline, subject.currency, subject.price),
        drawn=plots.draw(found[ALL], subject.baseline),
        errors=sections.errors(found[ALL]),
        baseline=subject.baseline,
        pairs=pairs or [],
        no_texts=NO_TEXTS if pairs is None else "",
        problems=subject.problems,
    )


def publish(
    folder: Path,
    name: str,
    data: Mapping[str, Any],
    *,
    title: str,
    method: str,
    paragraphs: Sequence[str],
    sections: Sequence[Section],
    drawn: Mapping[str, str],
    errors: Sequence[str] = (),
    baseline: str = "",
    pairs: Sequence[Pair] = (),
    no_texts: str = "",
    problems: Sequence[str] = (),
) -> list[Path]:
    """Write NAME.md with its plots, NAME.html and NAME.json; the files."""
    shared = {
        "title": title,
        "method": method,
        "paragraphs": paragraphs,
        "sections": sections,
        "errors": errors,
        "titles": plots.TITLES,
        "baseline": baseline,
        "pairs": pairs,
        "no_texts": no_texts,
        "problems": problems,
        "verdict": verdict,
    }
    page = {"plots": {plot: data_url(svg) for plot, svg in drawn.items()}, "code": code, "mark": mark}
    page |= {"parts": parts, "is_bold": is_bold}
    files = {f"{plot}.svg": svg for plot, svg in drawn.items()}
    files[f"{name}.md"] = render("report.md.jinja", {**shared, "plots": drawn, "fence": fence})
    files[f"{name}.html"] = render("report.html.jinja", {**shared, **page})
    files[f"{name}.json"] = json.dumps(data, indent=1) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    return [folder / file for file in files]


def render(template: str, context: Mapping[str, Any]) -> str:
    """A template with HTML escaped if it makes HTML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=".html" in template,
        undefined=jinja2.StrictUndefined,
        trim_blocks=".html" in template,
        keep_trailing_newline=True,
    )
    text = environment.get_template(template).render(context)
    return text if ".html" in template else re.sub(r"\n{3,}", "\n\n", text)


def data_url(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def code(text: str) -> Any:
    """A sentence as HTML: escaped, with what is between backquotes as code."""
    import markupsafe

    pieces = [markupsafe.escape(piece) for piece in text.split("`")]
    return markupsafe.Markup("").join(
        markupsafe.Markup("<code>{}</code>").format(piece) if number % 2 else piece
        for number, piece in enumerate(pieces)
    )


def fence(text: str) -> str:
    """A text as a fenced block of Markdown, whatever it contains."""
    longest = max((len(ticks) for ticks in re.findall(r"`{3,}", text)), default=2)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}\n{text}\n{ticks}"


def mark(correct: bool | None) -> str:
    return {True: "right", False: "wrong"}.get(correct, "")  # type: ignore[arg-type]  # None has none


def verdict(pair: Pair) -> str:
    """What the two answers were judged, and how similar they are."""
    judged: dict[Any, str] = {(True, False): "right before, wrong here", (False, True): "wrong before, right here"}
    judged |= {(True, True): "both right", (False, False): "both wrong"}
    return f"{judged.get(pair.correct, 'not checked')}, {100 * pair.similarity:.0f} % similar"
