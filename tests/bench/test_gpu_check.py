"""`python -m bench gpu_check`: its plan, its processes, what it leaves behind. Lines: test_gpu_check_lines.py."""

import contextlib
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from bench import gpu_check
from bench.__main__ import main
from bench.gpu_check import conduct
from bench.gpu_check.conduct import Conductor
from bench.gpu_check.plan import plan
from bench.gpu_check.process import report
from bench.gpu_check.record import DIFF, FAIL, FIGURE, OK, SKIPPED, Check, Comparison, Finding, Setting, Subject, judge
from bench.gpu_check.report import headline, markdown

CPU = Setting(gpu=False, quick=True)
GPU = Setting(gpu=True)


def silent(given: Any) -> Finding:
    return Finding(OK, "nothing")


# The plan


@pytest.mark.parametrize("setting", [CPU, GPU], ids=["cpu", "gpu"])
def test_plan(setting: Setting) -> None:
    """Every line has a name of its own, compares what there is, and says why it is there."""
    items = plan(setting)
    lines = [line for item in items for line in item.lines()]
    assert len(set(lines)) == len(lines)
    assert {item.group for item in items} == set(gpu_check.GROUPS)
    for item in items:
        if isinstance(item, Comparison):
            assert set(item.needs) <= set(lines) and item.why
        else:
            assert item.checks and all(check.why for check in item.checks)
    text = gpu_check.listing(items)
    assert all(item.name in text for item in items)


@pytest.mark.parametrize("setting", [CPU, GPU], ids=["cpu", "gpu"])
def test_every_line_finds_a_fault(setting: Setting) -> None:
    """Each line of each kind of subject has been seen to find something that is planted."""
    from tests.bench.test_gpu_check_cost import CELL, COST
    from tests.bench.test_gpu_check_engines import NANO, SHAPE, TIGHT, VISION
    from tests.bench.test_gpu_check_lines import KERNELS, MACHINE

    kinds = {"machine": MACHINE, "kernels": KERNELS, "nano, few KV blocks": TIGHT, "vision": VISION, "shape": SHAPE}
    for item in plan(setting):
        if isinstance(item, Subject):
            faults = kinds.get(item.name, COST if item.group == "cost" else NANO)
            lines = {CELL if " × " in check.name else check.name for check in item.checks}
            assert lines <= {fault.line for fault in faults}, item.name


def test_a_gpu_has_every_backend_with_every_dtype_eager_and_with_graphs() -> None:
    names = {item.name for item in plan(GPU) if item.name.startswith("nano ") and isinstance(item, Subject)}
    for kind in ("FLASH_ATTN bfloat16", "TRITON_ATTN bfloat16", "TRITON_ATTN float32"):
        assert {f"nano {kind} graphs", f"nano {kind} eager"} <= names


def test_timed_engines_run_alone() -> None:
    assert all(item.alone == (item.group == "cost") for item in plan(GPU) if isinstance(item, Subject))


def test_only_what_is_asked_for() -> None:
    items = plan(CPU)
    assert {item.group for item in gpu_check.chosen(items, ["kernels", "cost"])} == {"kernels", "cost"}
    assert [item.name for item in gpu_check.chosen(items, ["8b"])] == ["8b"]
    with pytest.raises(SystemExit, match="'kernel' is no group"):
        gpu_check.chosen(items, ["kernel"])


# Processes


def play(setting: Setting, name: str, log: Path, pipe: Connection) -> None:
    """In place of a subject's process: what its name says."""
    pipe.send((f"{name}: start",))
    if name == "refuses":
        log.write_text("ValueError: not with this device\nbye\n")
        pipe.send((f"{name}: start", Finding(FAIL, "ValueError")))
        raise SystemExit(1)
    pipe.send((f"{name}: start", Finding(OK, "ready")))
    for line in ("one", "two", "three"):
        pipe.send((f"{name}: {line}",))
        if line == "two" and name == "dies":
            log.write_text("RuntimeError: CUDA error\nwhatever else\n")
            os._exit(3)
        if line == "two" and name == "hangs":
            time.sleep(600)
        pipe.send((f"{name}: {line}", Finding(OK, line, {"n": 1})))


def conducted(names: list[str], more: list[Comparison] | None = None, seconds: float = 120) -> dict[str, Finding]:
    """Findings, in the order in which they arrived."""
    folder = Path(os.environ["PYTEST_TMP"])
    found: dict[str, Finding] = {}
    checks = tuple(Check(name, "-", silent, limit=1 if name == "two" else 60) for name in ("one", "two", "three"))
    subjects = [Subject(name, "nano", None, checks, limit=60) for name in names]  # type: ignore[arg-type]  # not opened
    ends = time.monotonic() + seconds
    conductor = Conductor(GPU, folder, found.__setitem__, ends, jobs=len(names), target=play)
    conductor.run([*subjects, *(more or [])])
    return found


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_TMP", str(tmp_path))


def test_one_that_dies_or_hangs_costs_its_own_lines_only() -> None:
    found = conducted(["works", "dies", "hangs", "refuses"])
    assert [found[f"works: {line}"].verdict for line in ("start", "one", "two", "three")] == [OK] * 4
    assert found["dies: one"].verdict == found["hangs: one"].verdict == OK
    assert found["dies: two"] == Finding(FAIL, "its process died; RuntimeError: CUDA error (all of it: dies.log)")
    assert found["hangs: two"].verdict == FAIL and "no end after 1 s" in found["hangs: two"].text
    for name in ("dies", "hangs"):
        assert found[f"{name}: three"] == Finding(SKIPPED, f"{name} has ended")
    assert found["refuses: start"].verdict == FAIL
    assert {found[f"refuses: {line}"].verdict for line in ("one", "two", "three")} == {SKIPPED}
    assert len(found) == 16


def test_comparisons_follow_what_they_compare() -> None:
    both = Comparison("same", "nano", "-", ("works: one", "works: two"), lambda a, b: Finding(OK, str(a["n"] + b["n"])))
    lost = Comparison("lost", "nano", "-", ("works: one", "absent: two"), lambda a, b: Finding(OK, "never"))
    found = conducted(["works"], [both, lost])
    assert found["same"] == Finding(OK, "2")
    assert found["lost"] == Finding(SKIPPED, "nothing to compare: no result of absent: two")


def test_nothing_starts_once_the_budget_is_used_up() -> None:
    found = conducted(["works"], seconds=1)
    assert {one.verdict for one in found.values()} == {SKIPPED} and "--minutes" in found["works: one"].text


def test_a_line_that_is_stopped_for_the_budget_is_no_fault() -> None:
    conductor = Conductor(GPU, Path(), lambda *_: None, ends=0)
    pipe, _theirs = multiprocessing.Pipe()
    stopped, hung = (conductor._listen(pipe, ["x: two"], {"x: two": limit}, time.monotonic()) for limit in (60, -60))
    assert stopped == Finding(SKIPPED, "the budget of time is used up (stopped)")
    assert hung == Finding(FAIL, "no end after -60 s (stopped)")


@pytest.mark.parametrize("timed", [False, True])
def test_what_measures_no_time_makes_room_for_what_does(timed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Conductor, "_conduct", lambda self, subject: None)
    ends = time.monotonic() + 1000
    conductor = Conductor(GPU, Path(), lambda *_: None, ends)
    conductor.run([Subject(name, "-", None, (), alone=alone) for name, alone in (("a", False), ("b", timed))])  # type: ignore[arg-type]  # not opened
    assert ends - conductor.room == pytest.approx((1 - conduct.SHARE) * 1000 if timed else 0, abs=100)


def test_a_subject_that_cannot_be_opened() -> None:
    @contextlib.contextmanager
    def opened(setting: Setting) -> Iterator[Any]:
        raise ValueError("no such device")
        yield

    sent: list[Any] = []
    with pytest.raises(ValueError, match="no such device"):
        report(Subject("x", "nano", opened, (Check("one", "-", silent),)), CPU, SimpleNamespace(send=sent.append))  # type: ignore[arg-type]  # it only sends
    (begun, (line, found)) = sent
    assert begun == ("x: start",) and line == "x: start"
    assert found.verdict == FAIL and found.text.startswith("ValueError: no such device")


def test_what_ends_the_run_ends_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[int] = []

    def interrupted(conductor: Conductor, comparisons: Any, final: bool) -> None:
        while not any(line.startswith("hangs") for line in conductor.found):
            time.sleep(0.05)
        running.extend(process.pid for process in conductor.running)
        raise KeyboardInterrupt

    checks = (Check("one", "-", silent),)
    subject = Subject("hangs", "nano", None, checks, limit=60)  # type: ignore[arg-type]  # not opened
    conductor = Conductor(GPU, Path(os.environ["PYTEST_TMP"]), lambda *_: None, time.monotonic() + 600, target=play)
    monkeypatch.setattr(
        conduct.ThreadPoolExecutor, "map", lambda pool, run, items: [*(pool.submit(run, i) for i in items)]
    )
    monkeypatch.setattr(Conductor, "_compare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        conductor.run([subject])
    assert running and not any(psutil.pid_exists(pid) for pid in running)


def test_a_process_that_ignores_everything_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[Any] = []
    monkeypatch.setattr(conduct, "end", lambda process, end=conduct.end: (end(process), killed.append(process)))
    conducted(["hangs"])
    assert [process.is_alive() for process in killed] == [False]


# Findings and reports


def test_an_error_is_a_finding_with_its_place() -> None:
    def broken(given: Any) -> Finding:
        raise ValueError("two\nlines")

    found = judge(broken, None)
    assert found.verdict == FAIL and found.text.startswith("ValueError: two lines (bench/test_gpu_check.py:")
    with pytest.raises(ValueError, match="'PASS'"):
        Finding("PASS", "")


def test_report_has_every_line_by_group() -> None:
    found = {"machine: start": Finding(OK, "a | b"), "kernels: start": Finding(FAIL, "bad")}
    text = markdown(plan(CPU), found, CPU, "About.", "python -m bench gpu_check")
    assert "| OK | machine: start | a \\| b |" in text and "| – | machine: versions | not reached |" in text
    assert text.index("## machine") < text.index("## kernels") < text.index("## nano") < text.index("## cost")
    assert "1 OK, 1 FAIL" in text and "There is no GPU here" in text
    assert headline({str(n): Finding(v, "") for n, v in enumerate((DIFF, DIFF, FIGURE))}) == "2 DIFF, 1 figure"


def test_the_command_on_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first group for real. Everything is on disk as soon as it is found."""
    options = ["gpu_check", "--quick", "--only", "machine", "--out", str(tmp_path / "out")]
    result = main([*options, "--json", str(tmp_path / "result.json")])
    printed = capsys.readouterr().out
    assert printed.startswith("There is no GPU here"), "before minutes of work that say nothing about one"
    for line, found in result["findings"].items():
        assert f"{found['verdict']:<7} {line}: " in printed
        assert found["verdict"] in (OK, FIGURE, SKIPPED), found
    head, *rows = map(json.loads, (tmp_path / "out/findings.jsonl").read_text().splitlines())
    assert head["provenance"] == result["provenance"]
    assert [row["line"] for row in rows] == list(result["findings"]) == plan(CPU)[0].lines()
    assert (tmp_path / "out/report.md").read_text().count("\n| ") == len(rows) + 2
    assert "the CPU build has one attention backend" in result["findings"]["machine: backend choice"]["text"]


def test_findings_are_saved_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the run, what was found until then stays."""

    class CutOff(Exception):
        pass

    def run(conductor: Conductor, items: Any) -> None:
        conductor._note("machine: versions", Finding(FIGURE, "vllm 0"))
        raise CutOff

    monkeypatch.setattr(Conductor, "run", run)
    with pytest.raises(CutOff):
        main(["gpu_check", "--only", "machine", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "findings.jsonl").read_text().splitlines()[-1])["text"] == "vllm 0"
    assert "| figure | machine: versions | vllm 0 |" in (tmp_path / "report.md").read_text()


def test_list_runs_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Conductor, "run")
    assert main(["gpu_check", "--list"]) == {}
    assert "draft logits = reference: mask, slots and adapter of draft passes are right" in capsys.readouterr().out


def test_figures_of_a_gpu_become_a_row(tmp_path: Path) -> None:
    from bench.gpu_check.figures import section

    cell = {"ms": 5.678}
    findings = {
        "8b: 1 × 1": {"verdict": FIGURE, "data": cell},
        "8b: 64 × 8": {"verdict": FIGURE, "data": cell},
        "8b: host gaps": {"verdict": DIFF, "data": 0.061},
        "8b: memory": {"verdict": FIGURE, "data": {"tokens": 12345}},
        "AR step at 1, AR-only server / stock": {"verdict": OK, "data": 1.0123},
    }
    assert set(findings) <= {line for item in plan(GPU) for line in item.lines()}
    machine = {"gpu": "NVIDIA H200"}
    result = {"provenance": {"machine": machine}, "date": "2026-01-02", "findings": findings}
    (tmp_path / "any.json").write_text(json.dumps(result))
    text = section(tmp_path)
    assert "| H200 | 5.68 | – | – | 5.68 | 1.012 | 6.1% | 12345 | 2026-01-02: 1 OK, 1 DIFF |" in text
    assert text.count("not measured") == 2 and section(tmp_path / "none").count("not measured") == 3
    machine["gpu"] = "NVIDIA GeForce RTX 4090"
    (tmp_path / "any.json").write_text(json.dumps(result))
    assert "| NVIDIA GeForce RTX 4090 | 5.68 |" in section(tmp_path)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GB200", "GB200"),
        ("NVIDIA RTX PRO 6000 Blackwell", "RTX Pro 6000"),
        ("NVIDIA A100-SXM4-80GB", None),
    ],
)
def test_data_sheet_by_the_drivers_name(name: str, known: str | None) -> None:
    from vllm_nld.roofline.devices import named

    assert getattr(named(name), "name", None) == known
