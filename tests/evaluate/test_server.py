"""`vllm-nld evaluate` against a real server on nano: figures, options of rows, resuming, and failures in one line."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from bench import quality
from bench.contenders import Contender
from tests.conftest import KEY
from tests.serving.test_server import connect
from vllm_nld.evaluate import asking, counts
from vllm_nld.evaluate.asking import Answer, Unreachable
from vllm_nld.evaluate.figures import ALL, figures, frame, turns
from vllm_nld.evaluate.prompts import NANO, interleave, read
from vllm_nld.evaluate.row import Row
from vllm_nld.evaluate.run import ANSWER, Run
from vllm_nld.evaluate.store import Store
from vllm_nld.evaluate.variant import Variant
from vllm_nld.nano import checkpoint_path
from vllm_nld.tools.cli import main
from vllm_nld.tools.server import Server

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
PLANTED = "diffusion,threshold=0.3"
LIMIT = 44


@pytest.fixture(scope="module")
def server(nano_server: Server) -> Iterator[Server]:
    """Commands read its key from the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_API_KEY", KEY)
        yield nano_server


@pytest.fixture(scope="module")
def report(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of a whole evaluation, with the server's own counts of the time that it took."""
    out, before = tmp_path_factory.mktemp("report"), counts.scrape(server.url)
    command = ["evaluate", server.url, "--modes", "linear", PLANTED, "--limit", str(LIMIT), "--out", str(out)]
    assert main(command) == 0
    kept: dict[str, Any] = json.loads((out / "report.json").read_text())
    return kept | {"out": out, "command": command, "spent": counts.scrape(server.url) - before}


def test_figures_are_the_servers_own(report: dict[str, Any]) -> None:
    found, spent = report["figures"][ALL], report["spent"]
    assert sum(row["tokens"] for row in found.values()) <= spent.tokens <= sum(r["tokens"] for r in found.values()) + 96
    assert {row["rows"] for row in found.values()} == {LIMIT} and not any(row["failed"] for row in found.values())
    assert found["ar"]["forwards"] == found["ar"]["tokens"] and found["ar"]["tpf"] == [1, 1, 1]
    assert all(row["disturbed"] == 0 for row in found.values())
    assert all(row["e2e"]["p95"][0] >= row["ttft"]["p50"][0] > 0 for row in found.values())
    assert all(row["tokens_per_s"][0] > 0 for row in found.values())


def test_figures_equal_the_servers_own_and_those_of_the_benchmark(server: Server, tmp_path: Path) -> None:
    """`bench modes` counts the same prompts from what each response says of itself."""
    from transformers import AutoTokenizer

    from bench import prompts as questions
    from vllm_nld.model.configs import register_configs

    register_configs()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    rows = [row for row in interleave(read(NANO)[0])[:LIMIT] if not questions.thinks(row)]
    run, variant, before = (
        run_of(server, tmp_path / "answers.jsonl"),
        Variant.parse("linear"),
        counts.scrape(server.url),
    )
    run.ask(rows, [variant])
    spent = counts.scrape(server.url) - before
    taken = turns(run.store, [variant], rows)
    ours = figures(frame(rows, [variant], run.store), taken, variant.name)[ALL][variant.name]
    assert (ours["tokens"], ours["forwards"]) == (spent.tokens, spent.forwards)
    assert ours["tpf"][0] == pytest.approx(spent.tpf)
    assert ours["acceptance_length"][0] == pytest.approx(spent.acceptance_length)
    asked = [questions.question(tokenizer, row) for row in rows]
    linear = Contender("nld", "rounds", {"vllm_xargs": {"nld_mode": "linear"}})
    theirs = quality.figures(quality.ask_all(server.url, asked, linear, Silent()))
    assert theirs["tokens"] == ours["tokens"] and theirs["exact"] == ours["accuracy"][0]
    for name in ("tpf", "acceptance_length"):  # a draft may differ with the requests beside it, in the last digit
        assert theirs[name] == pytest.approx(ours[name][0], rel=0.02)


class Silent:
    def update(self, answers: int) -> None: ...


def test_planted_wrong_mode_is_significant_and_linear_is_not(report: dict[str, Any]) -> None:
    found = report["figures"][ALL]
    assert found["diffusion, threshold 0.3"]["against"]["significant"]
    assert found["diffusion, threshold 0.3"]["against"]["difference"] < -0.2
    assert not found["linear"]["against"]["significant"] and found["linear"]["agreement"][0] == 1
    text = (report["out"] / "report.md").read_text()
    assert "answers" in text and "points fewer correctly (p" in text and "side by side" not in text.split("\n\n")[0]


def test_whole_report_is_made_again_without_a_server(report: dict[str, Any]) -> None:
    before = json.loads((report["out"] / "report.json").read_text())
    dead = [word.replace(report["command"][1], "http://127.0.0.1:9") for word in report["command"]]
    with pytest.raises(SystemExit) as end:  # another server's answers are not mixed in
        main(dead)
    assert end.value.code == 2
    (report["out"] / "report.json").unlink()
    assert main(report["command"]) == 0
    assert json.loads((report["out"] / "report.json").read_text()) == before


def run_of(server: Server, file: Path, **options: Any) -> Run:
    return Run(Store(file, {}), server.url, "bench", concurrency=2, **options)


def answers(run: Run, rows: list[Row], variant: Variant) -> list[Answer]:
    return [Answer.load(run.store.get((ANSWER, variant.name, row.name))) for row in rows]


def test_interrupted_run_goes_on_to_the_same_answers(server: Server, tmp_path: Path) -> None:
    rows = interleave(read(NANO)[0])[:16]
    variants = [Variant.parse("ar"), Variant.parse("linear")]
    asked: list[int] = []

    def interrupt(number: int) -> None:
        asked.append(number)
        if len(asked) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_of(server, tmp_path / "cut.jsonl", progress=interrupt).ask(rows, variants)
    with (tmp_path / "cut.jsonl").open("a") as file:
        file.write('{"key": "answer / ar / 1", "val')  # cut in the middle of a line
    resumed = run_of(server, tmp_path / "cut.jsonl", progress=asked.append)
    assert resumed.missing(rows, variants) == 32 - sum(asked)
    resumed.ask(rows, variants)
    assert sum(asked) == 32 and resumed.missing(rows, variants) == 0
    whole = run_of(server, tmp_path / "whole.jsonl")
    whole.ask(rows, variants)
    for variant in variants:
        ours, theirs = (
            [(a.text, a.digest, a.correct, a.tokens, a.verdicts) for a in answers(run, rows, variant)]
            for run in (resumed, whole)
        )
        assert ours == theirs


def asked(server: Server, folder: Path, *raw: dict[str, Any], mode: str = "ar", **options: Any) -> list[Answer]:
    """The answers to rows of a file."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in raw))
    rows, problems = read(file)
    assert not problems
    run, variant = run_of(server, folder / "answers.jsonl", **options), Variant.parse(mode)
    run.ask(rows, [variant])
    return answers(run, rows, variant)


COUNT = {"prompt": "Count from 57 to 70 with commas.", "max_tokens": 80}  # of the held-out prompts
STRANGE = {"prompt": "Zxqv, wob?", "max_tokens": 60}  # to which the model has no answer
RIGHT = ", ".join(map(str, range(57, 71)))


def test_options_of_each_row_are_honoured(server: Server, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
    rows: dict[str, dict[str, Any]] = {
        "plain": COUNT,
        "short": {**COUNT, "max_tokens": 3},
        "system": {**COUNT, "system": "You are a helpful assistant. Answer with the result only."},
        "thinking": {**COUNT, "thinking": True},
        "tools": {**COUNT, "tools": tools},
        "turns": {"turns": [COUNT["prompt"], COUNT["prompt"]], "max_tokens": 80},
        "history": {
            "messages": [
                {"role": "user", "content": COUNT["prompt"]},
                {"role": "assistant", "content": RIGHT},
                {"role": "user", "content": COUNT["prompt"]},
            ],
            "max_tokens": 80,
        },
        "greedy": STRANGE,
        "hot": {**STRANGE, "temperature": 2.0, "seed": 1},
        "hot again": {**STRANGE, "temperature": 2.0, "seed": 1},
        "hot otherwise": {**STRANGE, "temperature": 2.0, "seed": 2},
        "picture": {**COUNT, "images": ["data:image/png;base64,AAAA"]},
    }
    found = dict(zip(rows, asked(server, tmp_path, *({"id": name, **row} for name, row in rows.items())), strict=True))
    plain = found["plain"]
    assert plain.text == RIGHT and plain.finish == "stop" and plain.firsts and len(plain.gaps) > 3
    assert found["short"].tokens == 3 and found["short"].finish == "length"
    for name in ("system", "tools", "history"):
        assert found[name].prompt_tokens > plain.prompt_tokens, name
    assert found["thinking"].prompt_tokens != plain.prompt_tokens or found["thinking"].text != plain.text
    assert len(found["turns"].firsts) == 2
    assert found["turns"].prompt_tokens == plain.prompt_tokens + found["history"].prompt_tokens
    assert found["hot"].text == found["hot again"].text not in (found["greedy"].text, found["hot otherwise"].text)
    assert re.match(r"HTTP 400: .*multimodal|HTTP 400: .*image", found["picture"].error or "", re.IGNORECASE)


def test_only_digests_are_kept(server: Server, tmp_path: Path) -> None:
    (answer,) = asked(server, tmp_path, {**COUNT, "expected": RIGHT}, digests=True)
    assert answer.text is None and answer.digest and answer.correct
    assert RIGHT not in (tmp_path / "answers.jsonl").read_text()


def test_batch_rows_continue_a_text(server: Server, tmp_path: Path) -> None:
    body = {"prompt": "1, 2, 3, 4,", "max_tokens": 4}
    (answer,) = asked(server, tmp_path, {"custom_id": "a", "url": "/v1/completions", "body": body}, mode="linear")
    assert answer.error is None and answer.tokens == 4 and answer.text


def test_judges_are_asked_over_http(server: Server, tmp_path: Path) -> None:
    """nano is no judge, so it gives no verdict; the row counts as unchecked."""
    from vllm_nld.evaluate.judge import Judge
    from vllm_nld.evaluate.scoring import Scorer

    scorer = Scorer(judge=Judge(f"{server.url}/v1", None))
    (answer,) = asked(server, tmp_path, {**COUNT, "checks": [{"judge": "Is it a list?"}]}, scorer=scorer)
    assert answer.error is None and answer.verdicts in ((None,), (True,), (False,))
    assert isinstance(connect(server), openai.OpenAI)


def test_turns_with_other_traffic_are_not_counted(server: Server, tmp_path: Path) -> None:
    client, (row,) = connect(server), read_rows(tmp_path, COUNT)

    class Disturbed(Run):
        async def answers(self, *arguments: Any) -> list[Answer]:
            client.completions.create(model="bench", prompt="1", max_tokens=1)
            return await super().answers(*arguments)

    run = Disturbed(Store(tmp_path / "x.jsonl", {}), server.url, "bench")
    run.ask([row], [Variant.parse("ar")])
    turn = next(value for key, value in run.store.values.items() if key.startswith("turn"))
    assert turn["disturbed"] and turn["counts"] is None


def read_rows(folder: Path, *raw: dict[str, Any]) -> list[Row]:
    file = folder / "some.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in raw))
    return read(file)[0]


def ended(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[Any, str]:
    with pytest.raises(SystemExit) as end:
        main(["evaluate", *words])
    return end.value.code, capsys.readouterr().err.strip()


def test_modes_that_the_server_refuses_are_left_out(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(COUNT) + '\n{"prompt": 3}\n{"prompt": "x", "max_tokens": 2, "colour": 1}\n')
    words = [server.url, "--prompts", str(file), "--modes", "quadratic", "linear,block_length=999", "--no-texts"]
    assert main(["evaluate", *words, "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if "left out" in line or "ignored" in line]
    assert [line.partition(" refuses ")[2].partition(",")[0] for line in told if "refuses" in line] == [
        "quadratic",
        "linear",
    ]
    assert any("line 2:" in line for line in told) and any("'colour' is ignored" in line for line in told)
    assert (
        "colour" in (tmp_path / "out/report.html").read_text()
        and COUNT["prompt"] not in (tmp_path / "out/report.html").read_text()
    )


def test_two_servers_are_compared(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server with itself, so answers and counts are the same; what it takes is not looked at."""
    words = ["compare", server.url, f"{server.url}/v1", "--limit", "16", "--out", str(tmp_path), "--modes", "linear"]
    main([*words, "--max-latency-growth", "10000", "--json", str(tmp_path / "verdicts.json")])
    found = {verdict["name"]: verdict for verdict in json.loads((tmp_path / "verdicts.json").read_text())["linear"]}
    assert found["acceptance length"]["change"] == found["TPF"]["change"] == [1, 1, 1]
    assert found["accuracy"]["change"][0] == 0 and found["failures"]["outcome"] == "ok"
    assert "is worse" not in capsys.readouterr().out
    assert "Where modes differ" not in (tmp_path / "compare.html").read_text(), "all texts are equal"


def test_tune_finds_the_strict_threshold(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Threshold 0.1 takes nearly random tokens, so it is dropped after the first rung; block length 8 is lossless."""
    settings = ["linear,block_length=8", "linear,block_length=16", "diffusion,threshold=0.1", "diffusion,threshold=0.2"]
    words = ["tune", server.url, "--candidates", *settings, "--limit", "32", "--within", "1", "--out", str(tmp_path)]
    status = main(words)
    kept = json.loads((tmp_path / "tune.json").read_text())
    assert kept["prompts"]["ar"] == 32 and max(kept["prompts"][f"diffusion, threshold {t}"] for t in (0.1, 0.2)) < 32
    assert status == 0 and kept["best"].startswith("linear")
    out = capsys.readouterr().out
    assert out.strip().splitlines()[-1].startswith('--additional-config \'{"nld": {"mode": "linear"')
    assert (tmp_path / "tune.html").exists() and (tmp_path / "accuracy.svg").exists()
    assert main(words) == status, "answers are asked once"


@pytest.mark.skipif(shutil.which("lm_eval") is None, reason="lm-eval isn't installed: pip install 'vllm-nld[lm-eval]'")
@pytest.mark.parametrize(("mode", "least", "most"), [("ar", 0.9, 1), ("diffusion", 0.3, 0.9)])
def test_lm_eval_measures_modes_by_name(mode: str, least: float, most: float, server: Server, tmp_path: Path) -> None:
    where = f"base_url={server.url}/v1/chat/completions,num_concurrent=8,max_retries=1"
    command = ["lm_eval", "--model", "local-chat-completions", "--apply_chat_template", "--limit", "40"]
    command += ["--model_args", f"model=nld:{mode},{where}", "--include_path", "examples/lm_eval", "--tasks", "nano"]
    environment = {**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    environment |= {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "OPENAI_API_KEY": "none"}
    done = subprocess.run(
        [*command, "--output_path", str(tmp_path / "out")], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("results*.json")
    found = json.loads(file.read_text())["results"]["nano"]
    assert least <= found["exact_match,none"] <= most


def test_unreachable_server_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = ended(capsys, "http://127.0.0.1:9", "--out", str(tmp_path))
    assert status == 3 and "http://127.0.0.1:9 doesn't answer: " in text and len(text.splitlines()) == 2


def test_server_that_goes_away_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr("vllm_nld.evaluate.run.connect", lambda *given: made.append(asking.connect(*given)) or made[-1])
    run = Run(Store(tmp_path / "x.jsonl", {}), "http://127.0.0.1:9", "nano")
    with pytest.raises(Unreachable, match="doesn't answer"):
        run.ask(read_rows(tmp_path, COUNT), [Variant.parse("ar")])
    assert made and all(client.is_closed() for client in made), "later, their event loop would be gone"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--modes", "fast"], "unknown mode 'fast'"),
        (["--modes", "ar,threshold=0.5"], "has no field 'threshold'"),
        (["--modes", "diffusion,threshold=high"], "write threshold=NUMBER"),
        (["--prompts", "/nothing.jsonl"], "can't be read"),
    ],
)
def test_bad_commands_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = ended(capsys, "http://127.0.0.1:9", *words, "--out", str(tmp_path))
    assert status == 2 and message in text and len(text.splitlines()) == 1


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    """A server that accepts and never answers; SIGTERM ends the command like Ctrl-C."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "vllm_nld.tools.cli", "evaluate", url, "--out", str(tmp_path)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        silent.settimeout(60)
        connection, _ = silent.accept()
        process.send_signal(signal.SIGTERM)
        _, text = process.communicate(timeout=60)
        connection.close()
    assert process.returncode == 130 and "the same command goes on" in text and "Traceback" not in text
