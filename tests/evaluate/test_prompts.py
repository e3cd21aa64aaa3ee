"""Prompt files: every layout and field, and one line for each row that can't be asked."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vllm_nld import nano_vlm
from vllm_nld.evaluate.asking import request
from vllm_nld.evaluate.options import Usage, rows_of
from vllm_nld.evaluate.prompts import NANO, interleave, read
from vllm_nld.evaluate.row import Row
from vllm_nld.evaluate.variant import Variant
from vllm_nld.nano import heldout

USER = {"role": "user", "content": "Say hello."}


def file_of(folder: Path, *rows: Any) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def one(folder: Path, row: dict[str, Any]) -> Row:
    rows, problems = read(file_of(folder, row))
    assert not problems, problems
    return rows[0]


LAYOUTS: dict[str, dict[str, Any]] = {
    "chat": {"messages": [USER]},
    "plain": {"prompt": "Say hello."},
    "Spec-Bench": {"question_id": 81, "category": "writing", "turns": ["Say hello."]},
    "SPEED-Bench": {"category": "writing", "messages": [USER]},
    "batch": {"custom_id": "7", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [USER]}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_asks_the_same(layout: str, tmp_path: Path) -> None:
    row = one(tmp_path, LAYOUTS[layout])
    assert row.messages == (USER,) and not row.follow_ups and row.checks == ()


def test_names_and_tags_come_from_the_layout(tmp_path: Path) -> None:
    assert one(tmp_path, LAYOUTS["Spec-Bench"]).name == "81"
    assert one(tmp_path, LAYOUTS["batch"]).name == "7"
    assert one(tmp_path, LAYOUTS["SPEED-Bench"]).tags == ("writing",)
    assert one(tmp_path, {"prompt": "x", "tags": ["a", "b", "a"]}).tags == ("a", "b")
    assert one(tmp_path, {"prompt": "x"}).tags == ("all",)


def test_later_turns_are_asked_after_the_answer(tmp_path: Path) -> None:
    row = one(tmp_path, {"turns": ["One?", "Two?", "Three?"], "reference": ["1", "2", "3"], "system": "Be brief."})
    assert [message["role"] for message in row.messages] == ["system", "user"]
    assert row.follow_ups == ("Two?", "Three?") and row.question == "Three?" and "2" in (row.reference or "")


def test_a_conversation_is_kept_whole(tmp_path: Path) -> None:
    history = [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "hello"}, USER]
    assert one(tmp_path, {"messages": history}).messages == tuple(history)


def test_fields_of_a_row_reach_its_request(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    options = {"max_tokens": 7, "temperature": 0.5, "top_k": 3, "seed": 5, "tools": tools, "stop": ["x"]}
    row = one(tmp_path, {"prompt": "Say hello.", "thinking": True, **options})
    sent = request(
        row, Variant.parse("linear,block_length=8"), "nano", seed=1, defaults={"max_tokens": 99, "top_p": 0.9}
    )
    assert {name: sent[name] for name in ("max_tokens", "temperature", "seed", "tools", "stop")} == {
        name: options[name] for name in ("max_tokens", "temperature", "seed", "tools", "stop")
    }
    assert sent["top_p"] == 0.9 and sent["model"] == "nano"
    assert sent["extra_body"] == {
        "top_k": 3,
        "chat_template_kwargs": {"enable_thinking": True},
        "vllm_xargs": {"nld_mode": "linear", "nld_block_length": 8},
    }


def test_seeds_differ_between_rows_and_not_between_variants(tmp_path: Path) -> None:
    from vllm_nld.evaluate.run import seed_of

    a, b = Row("a", messages=(USER,)), Row("b", messages=(USER,))
    assert seed_of(a, 0) == seed_of(a, 0) != seed_of(b, 0) != seed_of(b, 1)


def test_batch_bodies_may_have_any_field_of_the_server(tmp_path: Path) -> None:
    body = {"model": "x", "messages": [USER], "max_completion_tokens": 9, "guided": 1}
    row = one(tmp_path, {"custom_id": "a", "url": "/v1/chat/completions", "body": body})
    assert row.options == {"max_tokens": 9, "guided": 1}
    raw = one(tmp_path, {"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "Once", "max_tokens": 3}})
    assert raw.text == "Once" and raw.messages == () and raw.options == {"max_tokens": 3}


def test_images_become_parts_of_the_last_message(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    row = one(tmp_path, {"prompt": "What is it?", "images": ["a.png", "https://x.test/b.jpg"]})
    local, remote, text = row.messages[-1]["content"]
    assert local["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(b"picture").decode()
    assert remote["image_url"]["url"] == "https://x.test/b.jpg" and text == {"type": "text", "text": "What is it?"}
    assert row.question == "[image_url]\n[image_url]\nWhat is it?"


def test_expected_is_an_exact_check(tmp_path: Path) -> None:
    row = one(tmp_path, {"prompt": "2+2?", "expected": "4"})
    assert row.checks == ({"exact": "4"},) and row.reference == "4"
    row = one(tmp_path, {"prompt": "2+2?", "expected": "4", "checks": [{"numeric": 4}]})
    assert row.checks == ({"numeric": 4},)


BAD = {
    '{"prompt": ': "not JSON",
    "[1]": "must be an object",
    '{"text_": "x"}': "must have 'messages', 'prompt', 'turns'",
    '{"messages": []}': "messages must be a list",
    '{"messages": [{"role": "robot", "content": "x"}]}': "role",
    '{"messages": [{"role": "user"}]}': "content",
    '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}': "nothing to answer",
    '{"prompt": "x", "max_tokens": "many"}': "max_tokens must be int",
    '{"prompt": "x", "temperature": true}': "temperature must be int or float",
    '{"prompt": "x", "thinking": 1}': "thinking must be true or false",
    '{"prompt": "x", "tags": []}': "tags must be",
    '{"prompt": "x", "expected": 4}': "use checks for numbers",
    '{"prompt": "x", "images": ["missing.png"]}': "missing.png",
    '{"prompt": "x", "checks": [{"regex": "("}]}': "is no pattern",
    '{"prompt": "x", "checks": [{"regexp": "a"}]}': "exactly one of exact, contains",
    '{"prompt": "x", "checks": [{"json_schema": {"type": "nothing"}}]}': "is no schema",
    '{"prompt": "x", "checks": [{"command": "true", "files": {"../x": ""}}]}': "relative file name",
    '{"prompt": "x", "checks": [{"exact": "a", "tolerance": 1}]}': "unknown field 'tolerance'",
    '{"url": "/v1/embeddings", "body": {}}': "can't be evaluated",
}


def test_each_bad_row_is_one_line_and_costs_nothing_else(tmp_path: Path) -> None:
    good = json.dumps({"prompt": "Say hello."})
    rows, problems = read(file_of(tmp_path, *(line for bad in BAD for line in (bad, good))))
    assert len(rows) == len(BAD)
    assert [problem.line for problem in problems] == list(range(1, 2 * len(BAD), 2))
    for problem, (line, message) in zip(problems, BAD.items(), strict=True):
        assert message in str(problem) and problem.fatal, line
        assert "\n" not in str(problem)


def test_unknown_fields_are_named_once_and_their_rows_asked(tmp_path: Path) -> None:
    rows, problems = read(file_of(tmp_path, *[{"prompt": "x", "max_token": 3}] * 2, {"prompt": "x", "other": 1}))
    assert len(rows) == 3 and not any(problem.fatal for problem in problems)
    assert [str(problem) for problem in problems] == [
        "line 1: unknown field 'max_token' is ignored (2 rows)",
        "line 3: unknown field 'other' is ignored",
    ]


def test_an_id_may_occur_once(tmp_path: Path) -> None:
    rows, problems = read(file_of(tmp_path, {"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}))
    assert len(rows) == 1 and "occurs twice" in str(problems[0])


class Options:
    """Of a command, as far as rows depend on them."""

    strict, limit = False, None

    def __init__(self, prompts: Path, strict: bool = False) -> None:
        self.prompts, self.strict = str(prompts), strict


@pytest.mark.parametrize(
    ("lines", "strict", "message"),
    [((), False, "is empty"), (("[]",), False, "no row"), (('{"prompt": "x", "y": 1}',), True, "unknown field 'y'")],
)
def test_files_without_a_row_end_the_command(
    lines: tuple[str, ...], strict: bool, message: str, tmp_path: Path
) -> None:
    with pytest.raises(Usage, match=message):
        rows_of(Options(file_of(tmp_path, *lines), strict))  # type: ignore[arg-type]  # it has what is needed


def test_missing_file_ends_the_command(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="can't be read: No such file"):
        rows_of(Options(tmp_path / "nothing.jsonl"))  # type: ignore[arg-type]  # it has what is needed


def test_nano_asks_all_heldout_prompts() -> None:
    rows, problems = read(NANO)
    assert len(rows) == len(heldout()) and not problems and all(row.checks for row in rows)
    mixed = interleave(rows)
    assert len({row.tags for row in mixed[:11]}) == 11 and {row.name for row in mixed} == {row.name for row in rows}


def test_nano_vlm_asks_about_pictures() -> None:
    rows, problems = read("nano-vlm")
    assert len(rows) == len(nano_vlm.heldout()) and not problems and all(row.checks for row in rows)
    for row, asked in zip(rows, nano_vlm.heldout(), strict=True):
        [picture, text] = row.messages[-1]["content"]
        image = Image.open(io.BytesIO(base64.b64decode(picture["image_url"]["url"].partition(",")[2])))
        assert image.size == asked.scene.size and text["text"] == asked.request
