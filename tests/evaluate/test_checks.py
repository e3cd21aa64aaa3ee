"""What a row can demand of its answer, and who says so: the text, a command in a sandbox, or a judge."""

import socket
from pathlib import Path
from typing import Any

import pytest

from vllm_nld.evaluate import sandbox
from vllm_nld.evaluate.asking import Answer
from vllm_nld.evaluate.checks import final, holds
from vllm_nld.evaluate.judge import verdict
from vllm_nld.evaluate.row import Row
from vllm_nld.evaluate.scoring import Scorer

SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
CASES: list[tuple[dict[str, Any], str, bool]] = [
    ({"exact": "4"}, " 4\n", True),
    ({"exact": "4"}, "4.", False),
    ({"contains": "Paris"}, "It is Paris.", True),
    ({"contains": ["a", "b"]}, "only a", False),
    ({"regex": r"^\d+$"}, "17", True),
    ({"regex": "a.b"}, "a\nb", True),
    ({"regex": r"^\d+$"}, "17 apples", False),
    ({"json_schema": SCHEMA}, '{"a": 1}', True),
    ({"json_schema": SCHEMA}, 'Here:\n```json\n{"a": 1}\n```\nDone.', True),
    ({"json_schema": SCHEMA}, '{"a": "1"}', False),
    ({"json_schema": SCHEMA}, "no JSON", False),
    ({"numeric": 1234.5}, "So 3 and 4 make 1,234.5.", True),
    ({"numeric": 3.14, "tolerance": 0.01}, "about 3.1416", True),
    ({"numeric": 3.14}, "about 3.1416", False),
    ({"numeric": -2e3}, "-2e3", True),
    ({"numeric": 1}, "none", False),
]


@pytest.mark.parametrize(("check", "answer", "expected"), CASES)
def test_checks_of_texts(check: dict[str, Any], answer: str, expected: bool) -> None:
    assert holds(check, answer) is expected


def test_thinking_is_not_part_of_the_answer() -> None:
    assert final("<think>4 or 5?</think>\n4") == "\n4" and final("4") == "4"


def scored(checks: list[dict[str, Any]], text: str, scorer: Scorer | None = None, error: str | None = None) -> Answer:
    row = Row("1", messages=({"role": "user", "content": "?"},), checks=tuple(checks))
    return (scorer or Scorer()).score(row, Answer(text, "", error=error))


def test_all_checks_must_hold() -> None:
    assert scored([{"contains": "a"}, {"contains": "b"}], "ab").correct is True
    assert scored([{"contains": "a"}, {"contains": "b"}], "a").verdicts == (True, False)
    assert scored([{"contains": "a"}, {"contains": "b"}], "a").correct is False
    assert scored([], "a").correct is None


def test_failed_request_is_a_wrong_answer_if_it_would_have_been_checked() -> None:
    assert scored([{"exact": "a"}], "", error="HTTP 500").correct is False
    assert scored([{"judge": "polite?"}], "", error="HTTP 500").correct is None
    assert scored([], "", error="HTTP 500").correct is None


def test_commands_and_judges_are_off_by_default() -> None:
    assert scored([{"command": "false"}, {"judge": "polite?"}], "x").verdicts == (None, None)
    assert scored([{"command": "false"}], "x").correct is None


class Yes:
    """A judge, and what it was asked."""

    def holds(self, *asked: Any, **more: Any) -> bool:
        self.asked = (asked, more)
        return True


def test_judge_sees_question_and_answer_without_thinking() -> None:
    judge = Yes()
    answer = scored([{"judge": "Is it polite?"}], "<think>hm</think>Hello!", Scorer(judge=judge))  # type: ignore[arg-type]  # it judges
    assert answer.correct is True
    assert judge.asked[0] == ("Is it polite?",) or judge.asked[0][0] == "Is it polite?"
    assert "Hello!" in judge.asked[0] and "?" in judge.asked[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Yes.", True), ("**No**", False), ("<think>yes</think> no", False), ("Maybe", None), ("", None)],
)
def test_verdict_is_the_first_word(text: str, expected: bool | None) -> None:
    assert verdict(text) is expected


needs_sandbox = pytest.mark.skipif(bool(sandbox.refusal()), reason=f"no sandbox here: {sandbox.refusal()}")
PYTHON = "python -c"


@needs_sandbox
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python -m unittest -q test_it", True),
        ("exit 3", False),
        (f"""{PYTHON} "import socket; socket.create_connection(('127.0.0.1', PORT), 2)" """, False),
        (f"""{PYTHON} "open('/etc/nld', 'w')" """, False),
        ("test ! -e SECRET && touch written && test -z $SECRET && ls answer.py", True),
        ("sleep 30", False),
        (f"""{PYTHON} "bytearray(3 << 30)" """, False),
    ],
)
def test_commands_run_in_a_sandbox(
    command: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network, no files of others, a bare environment; little time and memory."""
    monkeypatch.setenv("SECRET", "x")
    (tmp_path / "secret").touch()
    command = command.replace("! -e SECRET", f"! -e {tmp_path}/secret")
    tests = "import unittest\nfrom answer import double\nclass T(unittest.TestCase):\n    def test(self):\n"
    tests += "        self.assertEqual(double(2), 4)\n"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command = command.replace("PORT", str(listening.getsockname()[1]))
        check = {"command": command, "files": {"test_it.py": tests}, "seconds": 2}
        answer = "Here you are:\n```python\ndef double(x):\n    return 2 * x\n```"
        assert scored([check], answer, Scorer(run_commands=True)).correct is expected
