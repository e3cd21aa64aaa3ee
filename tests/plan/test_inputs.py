"""Traffic, acceptance and step times: what is read, and what is refused by name."""

import json
import random
import statistics
from pathlib import Path

import pytest

from vllm_nld.plan import acceptance, traffic
from vllm_nld.plan.acceptance import ANY, Acceptance
from vllm_nld.plan.steps import Curves, Roofline, Work
from vllm_nld.roofline.costs import Model, ar, linear, step_seconds
from vllm_nld.roofline.devices import DEVICES, group
from vllm_nld.roofline.shapes import SHAPES, nano, shape_of

H100 = Roofline(SHAPES["8b"], DEVICES["H100"])


def test_distributions_have_the_stated_mean_and_percentile() -> None:
    rng = random.Random(0)
    draws = [
        sorted(draw(rng) for _ in range(20_000)) for draw in map(parsed, ("lognormal:600,p95=2000", "exponential:300"))
    ]
    assert [statistics.mean(values) for values in draws] == pytest.approx([600, 300], rel=0.05)
    assert [values[19_000] for values in draws] == pytest.approx([2000, 300 * 2.996], rel=0.05)
    assert {parsed("512")(rng)} == {512}
    assert {parsed("uniform:3-5")(rng) for _ in range(100)} == {3, 4, 5}


def parsed(text: str) -> traffic.Lengths:
    return traffic.parse(text, "prompt")


@pytest.mark.parametrize(
    "text",
    ["", "0", "many", "uniform:9-3", "uniform:9", "lognormal:600", "lognormal:600,p95=9000", "exponential:1", "zipf:3"],
)
def test_bad_lengths_are_named(text: str) -> None:
    with pytest.raises(ValueError, match=f"--prompt '{text}'"):
        parsed(text)


def test_arrivals_come_at_the_rate_and_in_bursts() -> None:
    def gaps(burstiness: float) -> list[float]:
        requests = traffic.poisson(5, 2000, traffic.fixed(1), traffic.fixed(1), random.Random(1), burstiness)
        assert len(requests) / 2000 == pytest.approx(5, rel=0.05)
        return [after.arrival - before.arrival for before, after in zip(requests, requests[1:], strict=False)]

    assert statistics.stdev(gaps(1.0)) == pytest.approx(0.2, rel=0.1)
    assert statistics.stdev(gaps(0.25)) == pytest.approx(0.4, rel=0.1)


TRACES = {
    "azure.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n2026-01-01 00:00:01.5,10,3\n2026-01-01 00:00:00.5,20,4\n",
    "log.jsonl": '{"created": 9, "usage": {"prompt_tokens": 10, "completion_tokens": 3}}\n\n'
    '{"created": 8, "usage": {"prompt_tokens": 20, "completion_tokens": 4}}\n'
    '{"created": 8.5, "usage": {"prompt_tokens": 20, "completion_tokens": 0}}\n',
}


@pytest.mark.parametrize("name", TRACES)
def test_traces_are_read_and_sorted(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(TRACES[name])
    requests = traffic.read_trace(tmp_path / name)
    assert requests == [traffic.Request(0.0, 20, 4), traffic.Request(1.0, 10, 3)]
    assert traffic.at_rate(requests, 4)[1].arrival == 0.25


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ('{"a": 1}\n', "line 1: .*it has none of timestamp"),
        ('{"time": 1, "prompt_tokens": 1, "output_tokens": 1}\n{"time"\n', "line 2: not JSON"),
        ("time,prompt,output\n1,five,2\n", "line 2: could not convert string to float: 'five'"),
        ("time,prompt,output\n1,5,0\n", "no requests with at least one"),
    ],
)
def test_bad_traces_name_the_line(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        traffic.read_trace(file)


def test_acceptance_is_drawn_from_the_curve() -> None:
    curves, rng = Acceptance({ANY: [0.8, 0.5, 0.1]}), random.Random(0)
    draws = [curves.draw("other", 3, rng.random()) for _ in range(20_000)]
    shares = [sum(kept >= place for kept in draws) / len(draws) for place in (1, 2, 3)]
    assert shares == pytest.approx([0.8, 0.5, 0.1], abs=0.01)
    assert curves.draw(ANY, 1, 0.0) == 1, "no more than was drafted"
    assert curves.tokens(4) == pytest.approx(2.4)


def test_acceptance_by_length_file_and_counters(tmp_path: Path) -> None:
    assert acceptance.read("6.82", 32).tokens(32) == pytest.approx(6.82)
    (tmp_path / "curves.json").write_text('{"code": [0.9, 0.5], "chat": [0.5]}')
    kinds = acceptance.read(str(tmp_path / "curves.json"), 32)
    assert kinds.curves[ANY] == pytest.approx([0.7, 0.25])
    assert kinds.draw("code", 31, 0.6) == 1 and kinds.draw("chat", 31, 0.6) == 0
    page = 'vllm:spec_decode_num_drafts_total{engine="0"} 10.0\n# HELP\n'
    for position, count in enumerate((8, 5)):
        page += f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="{position}"}} {count}.0\n'
    (tmp_path / "metrics.txt").write_text(page)
    assert acceptance.read(str(tmp_path / "metrics.txt"), 32).curves[ANY] == [0.8, 0.5]


@pytest.mark.parametrize(
    ("content", "message"), [("[0.5, 0.7]", "never rise"), ("{}", "needs a curve"), ("[", "neither a number")]
)
def test_bad_acceptance_is_named(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "curves.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        acceptance.read(str(file), 32)


def test_bad_acceptance_lengths_and_metrics_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must lie between 1 and the block length, 8"):
        acceptance.read("9", 8)
    (tmp_path / "metrics.txt").write_text("up 1\n")
    with pytest.raises(ValueError, match="has the server drafted yet"):
        acceptance.read(str(tmp_path / "metrics.txt"), 8)


@pytest.mark.parametrize("block", [1, 32])
def test_decode_steps_are_the_rooflines(block: int) -> None:
    model, mode = Model.whole(SHAPES["8b"], context=500), linear(32, 6.82) if block > 1 else ar()
    rows = 4 * block
    work = Work(requests=4, verified=rows, context=2000, drafted=rows if block > 1 else 0, passes=1)
    assert H100.seconds(work) == pytest.approx(step_seconds(model, DEVICES["H100"], mode, 4), rel=0.02)


def test_four_gpus_are_faster_than_one_but_not_four_times() -> None:
    work = Work(requests=64, verified=64 * 32, context=64_000)
    one, four = (Roofline(SHAPES["8b"], group(DEVICES["H100"], ranks)).seconds(work) for ranks in (1, 4))
    assert one / 4 < four < one / 1.5
    with pytest.raises(ValueError, match="at least 1 GPU, not 0"):
        group(DEVICES["H100"], 0)


CELLS = {(n, b): 10.0 + n * b / 4 for n in (1, 4, 16) for b in (1, 8, 32)}


def test_curves_go_through_their_cells_and_follow_the_roofline_beyond() -> None:
    curves = Curves(H100, CELLS, context=128, prompts={100: 12.0, 300: 16.0})
    for (requests, block), ms in CELLS.items():
        assert curves.seconds(curves._work(requests, block)) == pytest.approx(ms / 1e3)
    assert 0.011 < curves.seconds(curves._work(2, 8)) < 0.018
    longer = curves._work(4, 8)._replace(context=4 * 4128)
    added = H100.seconds(longer) - H100.seconds(curves._work(4, 8))
    assert curves.seconds(longer) - curves.seconds(curves._work(4, 8)) == pytest.approx(added) and added > 0
    assert curves.seconds(Work(prompt=200, prompts=1)) == pytest.approx(0.014)
    with_prompt = curves._work(4, 8)._replace(prompt=200, prompts=1)
    assert curves.seconds(with_prompt) == pytest.approx(0.018 + 0.004), "without a second step's fixed part"
    assert curves.seconds(curves._work(256, 32)) > 3 * curves.seconds(curves._work(16, 32))


def test_gpu_check_results_are_curves(tmp_path: Path) -> None:
    findings = {f"8b: {n} × {b}": {"data": {"ms": ms}} for (n, b), ms in CELLS.items()}
    findings |= {"8b: memory": {"data": {"tokens": 4321}}, "8b, AR only: 1 × 1": {"data": {"ms": 1.0}}}
    file = tmp_path / "h100.json"
    file.write_text(json.dumps({"findings": findings}))
    curves = Curves.read(file, H100)
    assert curves.cells == CELLS and curves.kv_tokens == 4321
    for other in (Roofline(SHAPES["14b"], DEVICES["H100"]), Roofline(SHAPES["8b"], group(DEVICES["H100"], 2))):
        with pytest.raises(ValueError, match="8B shape on one GPU"):
            Curves.read(file, other)
    del findings["8b: 4 × 8"]
    file.write_text(json.dumps({"findings": findings}))
    with pytest.raises(ValueError, match="h100.json has no usable step times.*4 requests with blocks of 8"):
        Curves.read(file, H100)


def test_sizes_of_models() -> None:
    assert shape_of("nano") == nano()
    with pytest.raises(ValueError, match="neither one of 3b, 8b, 14b, nano nor a checkpoint folder"):
        shape_of("9b")
