"""The findings as a table that can be pasted into an issue."""

from collections import Counter
from collections.abc import Mapping, Sequence

from bench.gpu_check.record import VERDICTS, Comparison, Finding, Setting, Subject
from vllm_nld.evaluate.spread import table

NO_GPU = "There is no GPU here: every line is in its CPU form, and times mean nothing."


def headline(found: Mapping[str, Finding]) -> str:
    """How many findings of each verdict."""
    count = Counter(finding.verdict for finding in found.values())
    return ", ".join(f"{count[verdict]} {verdict}" for verdict in VERDICTS if count[verdict])


def markdown(
    items: Sequence[Subject | Comparison], found: Mapping[str, Finding], setting: Setting, about: str, command: str
) -> str:
    """All lines so far, most important first; what has not been reached is said to be missing."""
    parts = [f"# gpu-check\n\n`{command}`: {headline(found) or 'nothing yet'}.\n\n{about}"]
    if not setting.gpu:
        parts.append(NO_GPU)
    for group in dict.fromkeys(item.group for item in items):
        lines = [line for item in items if item.group == group for line in item.lines()]
        rows = [[found[line].verdict, line, escaped(found[line].text)] for line in lines if line in found]
        rows += [["–", line, "not reached"] for line in lines if line not in found]
        parts.append(f"## {group}\n\n{table(['', 'line', 'finding'], rows)}")
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text that does not break a table's row."""
    return text.replace("|", "\\|")
