"""The report's sections as data, which the Markdown and the HTML template both render.

for section in sections(figures, baseline="ar", currency="$"):
    section.title, section.note, section.header, section.lines, section.plot
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_nld.evaluate.figures import ALL, Figures

NONE = "–"
MOST_POSITIONS = 12  # columns of the table of acceptance by position


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, a sentence on how to read what follows, a table if there are lines, and a plot's name."""

    title: str
    note: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    plot: str | None = None


def estimate(value: Any, digits: int = 2, factor: float = 1, unit: str = "") -> str:
    """A value with its interval."""
    if value is None:
        return NONE
    middle, low, high = (factor * part for part in value)
    if low == high:
        return f"{middle:.{digits}f}{unit}"
    return f"{middle:.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]"


def share(value: Any) -> str:
    return estimate(value, 1, 100, "\N{NO-BREAK SPACE}%")


def seconds(value: Any) -> str:
    """Seconds, or milliseconds if they are few."""
    if value is None:
        return NONE
    return estimate(value, 0, 1000, " ms") if value[0] < 0.9995 else estimate(value, 2, 1, " s")


def significance(pair: Mapping[str, Any] | None) -> str:
    if pair is None:
        return NONE
    p = "p < 0.001" if pair["p"] < 0.001 else f"p = {pair['p']:.3f}"
    return f"**{p}**" if pair.get("significant") else p


def points(pair: Mapping[str, Any] | None) -> str:
    if pair is None:
        return NONE
    return estimate((pair["difference"], pair["low"], pair["high"]), 1, 100)


def sections(found: Figures, baseline: str, currency: str = "$", price: float | None = None) -> list[Section]:
    """All tables that have something to say."""
    mine = found[ALL]
    every = [
        accuracy(mine, baseline),
        *by_tag(found, baseline),
        decoding(mine),
        positions(mine),
        latency(mine),
        speed(mine, baseline, currency if price is not None else None),
        failures(mine),
    ]
    return [section for section in every if section.lines]


def accuracy(mine: Mapping[str, Any], baseline: str) -> Section:
    lines = []
    for name, row in mine.items():
        pair = row["against"]
        swapped = NONE if pair is None or name == baseline else f"{pair['gained']} / {pair['lost']}"
        ours = (NONE, NONE, NONE) if name == baseline else (points(pair), swapped, significance(pair))
        lines.append((name, share(row["accuracy"]), *ours, NONE if name == baseline else share(row["agreement"])))
    note = (
        f"Right answers among those that were checked, and the difference from {baseline} in percentage points, prompt "
        f"by prompt: gained / lost counts the prompts that only one of the two answered correctly, p is McNemar's. "
        f"Same text: answers that equal {baseline}'s."
    )
    header = ("mode", "accuracy", f"points from {baseline}", "gained / lost", "significance", "same text")
    return Section("Accuracy", note, header, tuple(lines), "accuracy")


def by_tag(found: Figures, baseline: str) -> list[Section]:
    """Tables with a line for each tag and a column for each mode."""
    tables: list[tuple[str, str, Callable[[str, Mapping[str, Any]], str]]] = [
        (
            "Accuracy and speed by tag",
            f"Accuracy (bold: significantly different from {baseline}) and speed relative to {baseline}. Speed, TPF "
            "and AL only for tags with enough prompts to fill turns of their own.",
            lambda name, row: right(row, name != baseline),
        ),
        (
            "Decoding by tag",
            "TPF / AL.",
            lambda name, row: f"{middle(row['tpf'])} / {middle(row['acceptance_length'])}",
        ),
        (
            "Latency by tag",
            "End-to-end P50 / P95.",
            lambda name, row: " / ".join(seconds(row["e2e"][q]).partition(" [")[0] for q in ("p50", "p95")),
        ),
    ]
    names, tags = list(found[ALL]), [tag for tag in found if tag != ALL]
    header = ("tag", "prompts", *names)
    sections = []
    for title, note, cell in tables:
        lines = [
            (tag, str(found[tag][names[0]]["rows"]), *(cell(name, found[tag][name]) for name in names)) for tag in tags
        ]
        empty = {f"{NONE} / {NONE}", NONE}
        shown = any(text not in empty for line in lines for text in line[2:])
        sections.append(Section(title, note, header, tuple(lines) if shown else ()))
    return sections


def right(row: Mapping[str, Any], compared: bool) -> str:
    """Accuracy, bold if it is significantly different, and the speed-up."""
    share = NONE if row["accuracy"] is None else f"{100 * row['accuracy'][0]:.0f}\N{NO-BREAK SPACE}%"
    if compared and row["against"] is not None and row["against"].get("significant"):
        share = f"**{share}**"
    return share if not compared or row["speedup"] is None else f"{share} · {row['speedup'][0]:.2f}×"


def middle(value: Any) -> str:
    return NONE if value is None else f"{value[0]:.2f}"


def decoding(mine: Mapping[str, Any]) -> Section:
    lines = []
    for name, row in mine.items():
        drafted = row["committed"] + row["rolled_back"]
        kept = NONE if not drafted else f"{row['committed']} / {row['rolled_back']}"
        rate = NONE if not drafted else f"{100 * row['committed'] / drafted:.1f} %"
        lines.append((name, str(row["tokens"]), estimate(row["tpf"]), estimate(row["acceptance_length"]), kept, rate))
    note = (
        "As the server counted them. TPF: output tokens per forward. AL: tokens per verify step, bonus token included. "
        "Committed / rolled back: draft tokens that were kept and dropped. AL and committed include drafts past "
        "the end of an answer, as in vLLM's own metrics."
    )
    header = ("mode", "tokens", "TPF", "AL", "committed / rolled back", "committed")
    return Section("Decoding", note, header, tuple(lines) if any(row["forwards"] for row in mine.values()) else ())


def positions(mine: Mapping[str, Any]) -> Section:
    found = {name: row["by_position"] for name, row in mine.items() if row["by_position"]}
    columns = sorted({int(position) for shares in found.values() for position in shares})[:MOST_POSITIONS]
    lines = [
        (name, *(f"{100 * shares[str(c)]:.0f} %" if str(c) in shares else NONE for c in columns))
        for name, shares in found.items()
    ]
    note = "Share of verify steps that accepted the draft at this position of a block. auto also verifies short blocks,"
    note += " which end before the later positions."
    return Section("Acceptance by position", note, ("mode", *map(str, columns)), tuple(lines), "positions")


def latency(mine: Mapping[str, Any]) -> Section:
    lines = [
        (name, *(seconds(row[measure][q]) for measure in ("ttft", "itl", "e2e") for q in ("p50", "p95")))
        for name, row in mine.items()
    ]
    note = (
        "TTFT: until the first token of a request. Gaps: between two pieces of a stream, which hold several tokens in "
        "all modes but ar. E2E: from sending a row to its end."
    )
    header = ("mode", "TTFT P50", "TTFT P95", "gaps P50", "gaps P95", "E2E P50", "E2E P95")
    return Section("Latency", note, header, tuple(lines), "latency")


def speed(mine: Mapping[str, Any], baseline: str, currency: str | None) -> Section:
    columns: list[tuple[str, Callable[[str, Mapping[str, Any]], str]]] = [
        ("mode", lambda name, row: name),
        ("tokens/s", lambda name, row: estimate(row["tokens_per_s"], 1)),
        (f"× {baseline}", lambda name, row: "1" if name == baseline else estimate(row["speedup"])),
        ("GPU-seconds per response", lambda name, row: estimate(row["gpu_seconds"], 3)),
    ]
    if currency is not None:
        columns += [(f"{currency} per 1000 responses", lambda name, row: estimate(row["cost"], 3, 1000))]
    lines = [tuple(cell(name, row) for _, cell in columns) for name, row in mine.items()]
    note = (
        f"In turns that a mode had for itself. × {baseline}: the same rows per second, median of the turns. On a "
        "machine without a GPU, GPU-seconds are the machine's."
    )
    return Section("Speed and cost", note, tuple(title for title, _ in columns), tuple(lines), "speed")


def failures(mine: Mapping[str, Any]) -> Section:
    kinds = ("failed", "refused", "cut", "disturbed")
    lines = [(name, *(str(row[kind]) for kind in kinds)) for name, row in mine.items()]
    note = (
        "Failed: requests without an answer. Refusals: answers that begin like one. Cut: answers that reached "
        "max_tokens. Disturbed: turns in which others used the server too, so that its counts were left out."
    )
    header = ("mode", "failed", "refusals", "cut", "disturbed turns")
    shown = any(row[kind] for row in mine.values() for kind in kinds)
    return Section("Failures", note, header, tuple(lines) if shown else ())


def errors(mine: Mapping[str, Any]) -> list[str]:
    """One line for each kind of failure."""
    return [f"{name}: {count} × {text}" for name, row in mine.items() for text, count in row["errors"].items()]


def plain(cell: str) -> str:
    """A cell without Markdown's marks."""
    return cell.replace("**", "")


def parts(cell: str) -> list[str]:
    """A cell's value, and its interval if it has one."""
    value, bracket, interval = plain(cell).partition(" [")
    return [value, "[" + interval] if bracket else [value]


def is_bold(cell: str) -> bool:
    return "**" in cell
