"""What a row can demand of its answer. A row's checks are objects with one key; all of them must hold.

    {"exact": "4"}                       the answer is this text, but for white space around it
    {"contains": "Paris"}                or a list, all of which must occur; case matters
    {"regex": "^\\d+$"}                  matches somewhere; `.` also matches line breaks
    {"json_schema": {...}}               the answer, or its last fenced block, is JSON that fits the schema
    {"numeric": 3.14, "tolerance": 0.01} the last number in the answer; without a tolerance, exactly
    {"command": "python -m pytest -q", "files": {"test_it.py": "..."}, "answer": "it.py", "seconds": 10}
                                         the command ends with status 0, see `sandbox`
    {"judge": "Is it polite?"}           another model says yes, see `judge`

`holds` decides all but the last two, which need more than the text.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

COMMAND, JUDGE = "command", "judge"
EXTRA = {"numeric": {"tolerance"}, COMMAND: {"files", "answer", "seconds"}}
FENCE = re.compile(r"```[^\n]*\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"[-+]?(?:\d[\d,]*)?\.?\d+(?:[eE][-+]?\d+)?")


def kind(check: Mapping[str, Any]) -> str:
    """Which kind of check this is. Raises ValueError if it is none."""
    found = [name for name in VALIDATE if name in check]
    if len(found) != 1:
        raise ValueError(f"a check must have exactly one of {', '.join(VALIDATE)}, not {json.dumps(check)[:80]}")
    if unknown := set(check) - {found[0]} - EXTRA.get(found[0], set()):
        raise ValueError(f"check {found[0]!r} has the unknown field {min(unknown)!r}")
    return found[0]


def validate(check: Any) -> None:
    """Raise ValueError if a check can't be carried out."""
    if not isinstance(check, Mapping):
        raise ValueError(f"a check must be an object, not {json.dumps(check)[:80]}")
    name = kind(check)
    VALIDATE[name](check)


def holds(check: Mapping[str, Any], answer: str) -> bool:
    """Whether an answer passes a check that needs only the text."""
    return HOLDS[kind(check)](check, answer)


def final(text: str) -> str:
    """The answer proper: what follows the thinking, if the text still contains that."""
    return text.rpartition("</think>")[2]


def fenced(answer: str) -> str:
    """The last fenced block of an answer, or all of it if there is none."""
    blocks = FENCE.findall(answer)
    return blocks[-1] if blocks else answer


def wanted(check: Mapping[str, Any]) -> list[str]:
    return [check["contains"]] if isinstance(check["contains"], str) else list(check["contains"])


def _json_schema(check: Mapping[str, Any], answer: str) -> bool:
    import jsonschema

    try:
        value = json.loads(fenced(answer))
        jsonschema.validate(value, check["json_schema"])
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def _numeric(check: Mapping[str, Any], answer: str) -> bool:
    numbers = NUMBER.findall(answer)
    if not numbers:
        return False
    return math.isclose(
        float(numbers[-1].replace(",", "")), check["numeric"], rel_tol=1e-12, abs_tol=check.get("tolerance", 0)
    )


def _need(check: Mapping[str, Any], name: str, kinds: type | tuple[type, ...], what: str) -> None:
    value = check[name]
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ValueError(f"check {name!r} must be {what}, not {json.dumps(value)[:80]}")


def _validate_contains(check: Mapping[str, Any]) -> None:
    _need(check, "contains", (str, list), "a text or a list of texts")
    if not all(isinstance(text, str) for text in wanted(check)):
        raise ValueError("check 'contains' must be a text or a list of texts")


def _validate_regex(check: Mapping[str, Any]) -> None:
    _need(check, "regex", str, "a pattern")
    try:
        re.compile(check["regex"])
    except re.error as error:
        raise ValueError(f"check 'regex' {check['regex']!r} is no pattern: {error}") from None


def _validate_schema(check: Mapping[str, Any]) -> None:
    import jsonschema

    _need(check, "json_schema", dict, "a JSON schema")
    try:
        jsonschema.validators.validator_for(check["json_schema"]).check_schema(check["json_schema"])
    except jsonschema.SchemaError as error:
        raise ValueError(f"check 'json_schema' is no schema: {error.message}") from None


def _validate_numeric(check: Mapping[str, Any]) -> None:
    _need(check, "numeric", (int, float), "a number")
    if "tolerance" in check:
        _need(check, "tolerance", (int, float), "a number")


def _validate_command(check: Mapping[str, Any]) -> None:
    _need(check, COMMAND, str, "a shell command")
    files = check.get("files", {})
    if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
        raise ValueError("check 'command': files must be an object of names and texts")
    for name in (*files, check.get("answer", "answer.py")):
        if not isinstance(name, str) or name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"check 'command': {name!r} must be a relative file name")
    if "seconds" in check:
        _need(check, "seconds", (int, float), "a number")


VALIDATE = {
    "exact": lambda check: _need(check, "exact", str, "a text"),
    "contains": _validate_contains,
    "regex": _validate_regex,
    "json_schema": _validate_schema,
    "numeric": _validate_numeric,
    COMMAND: _validate_command,
    JUDGE: lambda check: _need(check, JUDGE, str, "a question that is answered by yes or no"),
}
HOLDS = {
    "exact": lambda check, answer: answer.strip() == check["exact"].strip(),
    "contains": lambda check, answer: all(text in answer for text in wanted(check)),
    "regex": lambda check, answer: re.search(check["regex"], answer, re.DOTALL) is not None,
    "json_schema": _json_schema,
    "numeric": _numeric,
}
