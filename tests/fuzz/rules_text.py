"""What an answer's text must keep: stop strings, the grammar, and what its tokens say."""

import json
import re
from collections.abc import Iterator

from tests.fuzz.case import Answer, Case, Variant
from tests.fuzz.options import SCHEMA
from tests.fuzz.render import EOS, decode, rendered


def stops(case: Case) -> list[str]:
    asked = case.options.get("stop", [])
    return [asked] if isinstance(asked, str) else asked


def plain(case: Case) -> bool:
    """Whether the answer's text is what its tokens say, and no parser takes it apart."""
    return not (case.thinks or case.tools) or case.endpoint in ("completions", "generate")


def grammar(case: Case) -> bool:
    """Whether a grammar restricts the answer. It ends the answer when it is complete."""
    return bool(
        "structured_outputs" in case.options
        or case.options.get("response_format", {}).get("type", "text") != "text"
        or (case.tools and case.options.get("tool_choice", "auto") not in ("auto", "none"))
    )


def echoed(case: Case) -> str:
    """The prompt, if the answer's text begins with it."""
    return rendered(case) if case.options.get("echo") else ""


def stop_strings(case: Case, variant: Variant, answer: Answer) -> Iterator[str]:
    if not plain(case) or case.options.get("min_tokens") or "output_mode" in case.options or case.beams:
        return
    text = answer.text.removeprefix(echoed(case))
    for stop in stops(case):
        at = text.find(stop)
        if at < 0:
            continue
        if not case.options.get("include_stop_str_in_output"):
            yield f"the text contains the stop string {stop!r}"
        elif at + len(stop) < len(text):
            yield f"the text goes on after the stop string {stop!r}"


def texts(case: Case, variant: Variant, answer: Answer) -> Iterator[str]:
    """The text is the tokens' text, up to a stop string or token."""
    if answer.ids is None or not plain(case) or stops(case) or case.options.get("output_mode") == "tokens":
        return
    if case.options.get("stop_token_ids") or case.options.get("include_stop_str_in_output") or case.beams:
        return
    ids = answer.ids[:-1] if answer.ids[-1:] == (EOS,) and answer.finish == "stop" else answer.ids
    expected = decode(ids, case.options.get("skip_special_tokens", True))
    got = answer.text.removeprefix(echoed(case))
    if expected.rstrip("\ufffd") != got.rstrip("\ufffd"):
        yield f"the text is {got!r}, its tokens say {expected!r}"


def structures(case: Case, variant: Variant, answer: Answer) -> Iterator[str]:
    asked = case.options.get("structured_outputs") or {}
    schema = case.options.get("response_format", {}).get("type") == "json_schema"
    cut = stops(case) or case.options.get("stop_token_ids") or answer.finish not in ("stop", "end_turn", "completed")
    if cut or case.thinks or case.tools or "repetition_detection" in case.options or case.options.get("echo"):
        return
    text = answer.text
    if "output_mode" in case.options or not (asked or schema) or case.options.get("skip_special_tokens") is False:
        return
    if "choice" in asked and text not in asked["choice"]:
        yield f"{text!r} is none of {asked['choice']}"
    if "regex" in asked and not re.fullmatch(asked["regex"], text):
        yield f"{text!r} does not match {asked['regex']}"
    if "grammar" in asked and not re.fullmatch("b*a", text):
        yield f"{text!r} is not in the grammar"
    if asked.get("json_object") or "json" in asked or schema:
        yield from valid_json(text, whole=bool(asked.get("json_object")))


def valid_json(text: str, whole: bool) -> Iterator[str]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        yield f"{text!r} is not JSON"
        return
    if not whole and (not isinstance(value, dict) or value.keys() != SCHEMA["properties"].keys()):  # type: ignore[attr-defined]
        yield f"{text!r} does not follow the schema"
