"""The lines of `python -m bench gpu_check` about cost, in their CPU form; see test_gpu_check_lines.py."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.decoding import AR
from bench.gpu_check import busy, cost
from bench.gpu_check.plan import no_slower, plan
from bench.gpu_check.record import DIFF, FIGURE, OK, Check, Subject, judge
from bench.parts import DRAFT, VERIFY
from tests.bench.faults import CPU, GPU, Fault, Patch, each, find, of, runnable
from vllm_nld.roofline.costs import Mode, Model, step_seconds
from vllm_nld.roofline.devices import DEVICES
from vllm_nld.roofline.shapes import SHAPES


@pytest.fixture(scope="module")
def costed() -> Iterator[cost.Engine]:
    with cost.open_engine(cost.DRAFTING, CPU) as engine:
        yield engine


DRAFTING, STOCK, PLAIN = cost.subjects(CPU)
CELL = "4 × 8"


@runnable(DRAFTING.checks)
def test_cost(check: Check, costed: cost.Engine) -> None:
    found = judge(check.run, costed)
    assert found.verdict == (OK if check.name == "memory" else FIGURE), found
    if " × " in check.name:
        assert found.data["ms"] > 0 and 0 < found.data["idle"] < 1


def own_weights(patch: Patch, engine: cost.Engine) -> None:
    """Draft passes have weights of their own."""
    model = engine.decoder.runner.model
    copy = torch.empty(engine.model.shape.parameters, dtype=torch.bfloat16)
    patch.setattr(model, "parameters", lambda shared=model.parameters: itertools.chain(shared(), [copy]))


def large_graphs(patch: Patch, engine: cost.Engine) -> cost.Engine:
    patch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * cost.GIB))
    return dataclasses.replace(engine, setting=GPU, graphs={"drafts": 3 * cost.GIB})


def slow_steps(patch: Patch, engine: cost.Engine) -> cost.Engine:
    """Of a GPU, twice as slow as it should be."""
    found = {"ms": 10.0, "roofline": 5.0, "parts": {}, "idle": 0.0}
    patch.setattr(cost, "measured", lambda *load: found)
    return dataclasses.replace(engine, setting=GPU, cells={})


MS = {1: 5.0, 8: 11.0, 16: 12.0, 32: 14.0}  # by block length
H100 = DEVICES["H100"]


def made_up(
    idle: float = 0.01, draft: float = 1.0, slow: float = 1.0, table: tuple[float, ...] = (*MS.values(),)
) -> Any:
    """An H100's figures at one request: as its data sheet has them, and long blocks pay.

    idle: share of a step. draft: a draft forward's time, in verify forwards. slow: how many times longer forwards take.
    table: the controller's.
    """
    model, cells = Model.whole(SHAPES["8b"]), {}
    bare = dataclasses.replace(H100, launch=0.0, host=0.0, memory_efficiency=1.0, compute_efficiency=1.0)
    for block, ms in MS.items():
        ideal = 1e3 * step_seconds(model, bare, Mode("", (block,), tokens=1), 1)
        verify = slow * ideal / (H100.memory_efficiency if block == AR else H100.compute_efficiency)
        cells[1, block] = {"ms": ms, "idle": idle, "parts": {VERIFY: verify, DRAFT: draft * verify}}
    controller = SimpleNamespace(lengths=(*MS,), costs=SimpleNamespace(of=lambda requests: list(table)))
    core = SimpleNamespace(
        engine_core=SimpleNamespace(scheduler=SimpleNamespace(auto=SimpleNamespace(controller=controller)))
    )
    llm = SimpleNamespace(llm_engine=SimpleNamespace(engine_core=core))
    return SimpleNamespace(setting=GPU, cells=cells, llm=llm, model=model, device=H100)


def figures(**wrong: Any) -> Callable[[Patch, Any], Any]:
    def plant(patch: Patch, engine: Any) -> Any:
        patch.setattr(cost, "gpu_rates", lambda: (H100.bandwidth, H100.flops))
        return made_up(**wrong)

    return plant


COST = (
    Fault("memory", "draft passes have their own weights", own_weights, "weights are there more than once", DIFF),
    Fault("memory", "large draft graphs", large_graphs, "draft graphs take more than 2% of the device", DIFF),
    Fault(CELL, "twice the roofline's time", slow_steps, "10.00 ms a step, roofline 5.00 (+100%)", DIFF),
    Fault("host gaps", "6 % of a step idle", figures(idle=0.06), "at most 6.0% idle, at concurrency 1", DIFF),
    Fault("draft forward", "twice a verify forward", figures(draft=2.0), "1 × 32: 2.00", DIFF),
    Fault("rates", "forwards take twice as long", figures(slow=2.0), "memory_efficiency 0.4 (it says 0.8)", DIFF),
    Fault("choices of auto", "its table", figures(table=(5.0, 60.0, 70.0, 90.0)), "1: best 32, auto 1 (", DIFF),
)


@each(COST)
def test_cost_fault(fault: Fault, costed: cost.Engine) -> None:
    find(fault, DRAFTING.checks, costed)


@pytest.mark.parametrize("name", ["host gaps", "draft forward", "rates", "choices of auto"])
def test_figures_of_a_gpu_that_are_right(name: str, monkeypatch: Patch) -> None:
    found = of(DRAFTING.checks, name, figures()(monkeypatch, None))
    assert found.verdict == OK, found


def test_a_host_that_holds_the_device_up(costed: cost.Engine, monkeypatch: Patch) -> None:
    """A planted sleep longer than any step of this model shows as idle time."""
    runner, sample = costed.decoder.runner, costed.decoder.runner.sample
    before = cost.cell(1, 8, costed).data

    def late(*args: Any, **more: Any) -> Any:
        time.sleep(max(0.2, before["ms"] * 4e-3))
        return sample(*args, **more)

    monkeypatch.setattr(runner, "sample", late)
    after = cost.cell(1, 8, costed).data
    assert after["idle"] > 0.6 and after["ms"] > before["ms"]
    assert after["parts"]["sampling"] > 3 * before["parts"]["sampling"]
    assert cost.host_gaps(dataclasses.replace(costed, setting=GPU, cells={(1, 8): after})).verdict == DIFF


def test_slower_forwards_reach_less_of_the_device(costed: cost.Engine) -> None:
    cells = {(1, 1): {"parts": {"verify forward": 1.0}}, (4, 8): {"parts": {"verify forward": 1.0}}}
    slower = {key: {"parts": {"verify forward": 1e6}} for key in cells}
    whole, none = (cost.efficiency(dataclasses.replace(costed, cells=some)).data for some in (cells, slower))
    for name in ("memory_efficiency", "compute_efficiency"):
        assert none[name] < whole[name] / 100


def test_memory_of_graphs(monkeypatch: Patch) -> None:
    """All of them, and those of drafts, by what is free before and after."""
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    from spec_worker.speculator import SelfSpeculator

    free = iter([100, 90, 70, 60])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (next(free), 100))
    monkeypatch.setattr(SelfSpeculator, "capture", lambda self: None)
    monkeypatch.setattr(GPUModelRunner, "capture_model", lambda self: SelfSpeculator.capture(self))
    with cost.graph_memory(GPU) as found:
        GPUModelRunner.capture_model(None)
    assert found == {"drafts": 20, "all": 40}


def test_idle_time_of_known_spans() -> None:
    assert busy.gaps([]) is None
    assert busy.gaps([(0, 1), (1, 4)]) == 0
    assert busy.gaps([(2, 4), (0, 1), (0.5, 1)]) == pytest.approx(0.25), "in any order, overlapping"


def test_ar_steps_against_stock() -> None:
    assert no_slower({"ms": 5.0}, {"ms": 5.0}).verdict == OK
    assert no_slower({"ms": 5.2}, {"ms": 5.0}).verdict == DIFF


def test_stock_mistral_of_the_same_shape(tmp_path: Path) -> None:
    """It is served without this plugin's model, and its layers have the same sizes."""
    with cost.open_engine(cost.STOCK, CPU) as engine:
        assert type(engine.decoder.runner.model).__name__ == "MistralForCausalLM"
        assert engine.decoder.runner.speculator is None
        found = judge(STOCK.checks[0].run, engine)
        assert found.verdict == FIGURE and found.data["ms"] > 0, found
    assert [check.name for check in STOCK.checks] == [check.name for check in PLAIN.checks] == ["1 × 1", "4 × 1"]


class Asked(Exception):
    """What an engine was asked for."""


@pytest.mark.parametrize(
    "subject",
    [item for item in plan(GPU) if item.group in ("nano", "shape", "cost") and isinstance(item, Subject)],
    ids=lambda item: item.name,
)
def test_engine_options_on_a_gpu(subject: Subject, monkeypatch: Patch) -> None:
    """There are such options, and timed engines have vLLM's defaults."""
    from vllm import EngineArgs

    def ask(model: Any, **options: Any) -> None:
        raise Asked(options)

    monkeypatch.setattr("tests.engines.engine", ask)
    monkeypatch.setattr("vllm.LLM", ask)
    with pytest.raises(Asked) as asked, subject.open(dataclasses.replace(GPU, options={"seed": 3})):
        pass
    (options,) = asked.value.args
    assert set(options) <= {field.name for field in dataclasses.fields(EngineArgs)} and options["seed"] == 3
    if subject.group == "cost":
        assert not {"max_num_seqs", "max_model_len", "gpu_memory_utilization", "enforce_eager"} & set(options)
    elif subject.name.startswith("nano "):
        assert options["enforce_eager"] == subject.name.endswith("eager")
        assert options["attention_backend"] in subject.name and options["dtype"] in subject.name
