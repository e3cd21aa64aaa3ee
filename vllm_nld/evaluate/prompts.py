"""Reads prompt files: JSONL, one row a line, in any of these layouts.

    {"messages": [{"role": "user", "content": "…"}]}         chat messages, also SPEED-Bench (a file or its folder)
    {"prompt": "…"}                                          one question, as in vLLM's custom data set
    {"turns": ["…", "…"]}                                    Spec-Bench: questions of one conversation
    {"custom_id": "…", "url": "/v1/chat/completions", "body": {…}}   OpenAI's batch format

    rows, problems = read(Path("prompts.jsonl"))             # a bad row costs its line, not the run
    rows, problems = read("nano")                            # nano's held-out prompts; "nano-vlm" has pictures

Beside its layout a row may have: id, tags, category, expected, reference, checks, images, system, thinking, and fields
of the request such as max_tokens or tools (`row.OPTIONS`).
"""

import base64
import json
import mimetypes
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_nld.evaluate.row import OPTIONS, Row

NANO, NANO_TOKENS = "nano", 320  # most output tokens of an answer
LAYOUTS = "'messages', 'prompt', 'turns' (Spec-Bench) or 'body' (OpenAI's batch format)"
ENDPOINTS = ("/v1/chat/completions", "/v1/completions")
OWN = ("id", "tags", "category", "expected", "reference", "checks", "images", "system", "thinking")
LAYOUT = ("messages", "prompt", "turns")
# Of published data sets and of logs: known, and of no use here.
IGNORED: tuple[str, ...] = (
    "question_id",
    "custom_id",
    "method",
    "url",
    "body",
    "model",
    "stream",
    "stream_options",
    "n",
    "output_tokens",
)
IGNORED += ("sub_category", "difficulty", "source", "dataset", "plan", "src_id", "multiturn", "bin")


@dataclass(frozen=True, slots=True)
class Problem:
    """One line for the person who wrote the file. `line` counts from 1."""

    line: int
    text: str
    fatal: bool = True  # the row was left out

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}"


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a prompt file that are not empty, with their numbers. SPEED-Bench comes as a folder."""
    file = path / "qualitative.jsonl" if path.is_dir() else path
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            yield number, line


def read(source: str | Path) -> tuple[list[Row], list[Problem]]:
    """All good rows, and what is wrong with the others. Raises OSError if there is no such file."""
    if source in OWN_SETS:
        return OWN_SETS[str(source)](), []
    rows: dict[str, Row] = {}
    problems: list[Problem] = []
    unknown: dict[str, list[int]] = {}
    for number, line in lines(Path(source)):
        try:
            raw = json.loads(line)
            if not isinstance(raw, dict):
                raise ValueError(f"a row must be an object, not {line.strip()[:60]}")
            row = parse(raw, str(number), Path(source).parent)
            if row.name in rows:
                raise ValueError(f"the id {row.name!r} occurs twice")
        except json.JSONDecodeError as error:
            problems.append(Problem(number, f"not JSON: {error}"))
        except (ValueError, OSError) as error:
            problems.append(Problem(number, str(error)))
        else:
            rows[row.name] = row
            for name in unknown_fields(raw):
                unknown.setdefault(name, []).append(number)
    for name, numbers in unknown.items():
        more = f" ({len(numbers)} rows)" if len(numbers) > 1 else ""
        problems.append(Problem(numbers[0], f"unknown field {name!r} is ignored{more}", fatal=False))
    return list(rows.values()), sorted(problems, key=lambda problem: problem.line)


def unknown_fields(raw: Mapping[str, Any]) -> list[str]:
    """Fields that nobody reads. A batch request's body is the server's, which knows more fields than we do."""
    return [name for name in raw if name not in (*OWN, *LAYOUT, *IGNORED, *OPTIONS)]


def parse(raw: Mapping[str, Any], name: str, folder: Path = Path()) -> Row:
    """A row from its JSON object. Raises ValueError for what can't be asked, OSError for a missing image."""
    raw, text = batch(raw) if "body" in raw else (raw, None)
    options = {key: value for key, value in raw.items() if key in OPTIONS or key in raw.get("extra", ())}
    if "thinking" in raw:
        if not isinstance(raw["thinking"], bool):
            raise ValueError(f"thinking must be true or false, not {json.dumps(raw['thinking'])}")
        template = options.get("chat_template_kwargs", {})
        options["chat_template_kwargs"] = {"enable_thinking": raw["thinking"], **template}
    messages, follow_ups = conversation(raw) if text is None else ([], [])
    messages = with_images(messages, raw.get("images", []), folder)
    expected, reference = raw.get("expected"), raw.get("reference")
    if expected is not None and not isinstance(expected, str):
        raise ValueError(
            f"expected must be a text, not {json.dumps(expected)[:60]}: use checks for numbers and schemas"
        )
    checks = raw.get("checks", [{"exact": expected}] if expected is not None else [])
    if not isinstance(checks, list):
        raise ValueError("checks must be a list of objects")
    if isinstance(reference, list):  # Spec-Bench: one for each turn
        reference = "\n\n".join(map(str, reference))
    return Row(
        name=str(raw.get("id", raw.get("custom_id", raw.get("question_id", name)))),
        messages=tuple(messages),
        follow_ups=tuple(follow_ups),
        text=text,
        options=options,
        reference=expected if reference is None else str(reference),
        checks=tuple(checks),
        tags=tags(raw),
    )


def batch(raw: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """A line of OpenAI's batch format as one of ours, with the text that it wants continued if it isn't a chat."""
    url, body = raw.get("url", ENDPOINTS[0]), raw["body"]
    if url not in ENDPOINTS:
        raise ValueError(f"url {url!r} can't be evaluated; possible are {', '.join(ENDPOINTS)}")
    if not isinstance(body, dict):
        raise ValueError("body must be an object")
    flat = {key: value for key, value in raw.items() if key != "body"} | body
    if "max_completion_tokens" in flat:
        flat["max_tokens"] = flat.pop("max_completion_tokens")
    text = flat.pop("prompt", None) if url == ENDPOINTS[1] else None
    if url == ENDPOINTS[1] and not isinstance(text, str):
        raise ValueError("body.prompt must be one text")
    return flat | {"extra": [key for key in body if key not in (*OWN, *LAYOUT, *IGNORED)]}, text


def conversation(raw: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """A row's messages up to its first question, and the questions that follow."""
    system = [{"role": "system", "content": raw["system"]}] if "system" in raw else []
    if "turns" in raw:
        if not isinstance(raw["turns"], list) or not raw["turns"]:
            raise ValueError("turns must be a list of questions")
        return [*system, {"role": "user", "content": raw["turns"][0]}], raw["turns"][1:]
    if "messages" in raw:
        if not isinstance(raw["messages"], list) or not raw["messages"]:
            raise ValueError("messages must be a list of chat messages")
        return [*system, *raw["messages"]], []
    if "prompt" in raw:
        return [*system, {"role": "user", "content": raw["prompt"]}], []
    raise ValueError(f"a row must have {LAYOUTS}, not {list(raw)}")


def with_images(messages: list[Any], images: Any, folder: Path) -> list[Any]:
    """The messages with images, URLs or files beside the prompt file, added to the last one."""
    if not images:
        return messages
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images) or not messages:
        raise ValueError("images must be a list of URLs or file names, beside a question")
    content = messages[-1]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    shown = [{"type": "image_url", "image_url": {"url": image_url(image, folder)}} for image in images]
    return [*messages[:-1], {**messages[-1], "content": [*shown, *parts]}]


def image_url(image: str, folder: Path) -> str:
    """An image's URL; a file's content as a data: URL. Raises OSError if the file can't be read."""
    if image.startswith(("http://", "https://", "data:")):
        return image
    kind = mimetypes.guess_type(image)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode((folder / image).read_bytes()).decode()}"


def tags(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """A row's tags; its category if it has none."""
    found = raw.get("tags", raw.get("category", "all"))
    if isinstance(found, str):
        return (found,)
    if not isinstance(found, list) or not found or not all(isinstance(tag, str) for tag in found):
        raise ValueError("tags must be a list of texts")
    return tuple(dict.fromkeys(found))


def nano() -> list[Row]:
    """nano's held-out prompts."""
    from vllm_nld.nano import heldout

    rows = []
    for number, prompt in enumerate(heldout(), start=1):
        row = {"messages": list(prompt.messages), "expected": prompt.expected, "thinking": prompt.thinking}
        row |= {"category": prompt.category, "max_tokens": NANO_TOKENS}
        rows.append(parse(row | ({"tools": list(prompt.tools)} if prompt.tools else {}), str(number)))
    return rows


def nano_vlm() -> list[Row]:
    """nano-vlm's held-out questions about pictures."""
    from vllm_nld.nano_vlm import heldout
    from vllm_nld.nano_vlm.scenes import data_url

    rows = []
    for number, asked in enumerate(heldout(), start=1):
        row = {"prompt": asked.request, "images": [data_url(asked.scene)], "expected": asked.expected}
        rows.append(parse(row | {"category": asked.category, "max_tokens": NANO_TOKENS}, str(number)))
    return rows


OWN_SETS = {NANO: nano, "nano-vlm": nano_vlm}


def interleave(rows: Iterable[Row]) -> list[Row]:
    """One row of each combination of tags in turn, so that any prefix is a mixture."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.tags, []).append(row)
    longest = max(map(len, groups.values()), default=0)
    return [group[index] for index in range(longest) for group in groups.values() if index < len(group)]
