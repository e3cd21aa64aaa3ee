"""The lines of `python -m bench gpu_check` that need an engine, in their CPU form; see test_gpu_check_lines.py."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.gpu_check import busy, controller, cost, drafting, nano, shape, tight
from bench.gpu_check.plan import no_slower, plan
from bench.gpu_check.record import DIFF, FAIL, FIGURE, OK, Check, Finding, Subject, judge
from bench.gpu_check.served import AR, Served, token_ids
from bench.gpu_check.waits import ROOT, waits
from tests.bench.test_gpu_check_lines import CPU, GPU, of, runnable

# nano


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with nano.open_nano(nano.Case("float32", True, "CPU_ATTN"), CPU) as served:
        yield served


@pytest.fixture
def forgotten(served: Served) -> Iterator[Served]:
    """Answers are asked for anew in the test, and after it."""
    told, served.told = served.told, {}
    yield served
    served.told = told
    served.llm.reset_prefix_cache()


@runnable(nano.CHECKS)
def test_nano(check: Check, served: Served) -> None:
    found = judge(check.run, served)
    assert found.verdict == OK, found


def plant_wrong_slots(patch: pytest.MonkeyPatch) -> None:
    """Draft passes write their KV a few slots early: over that of accepted tokens."""
    from spec_worker.inputs import Inputs

    fill = Inputs.fill

    def early(self: Inputs, *args: Any) -> None:
        fill(self, *args)
        self.slots.copy_((self.slots - 8).clamp(min=-1))

    patch.setattr(Inputs, "fill", early)


def plant_causal_drafts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("spec_worker.forward.kernel_causal", lambda mask: True)


def plant_hasty_commits(patch: pytest.MonkeyPatch) -> None:
    """Denoising takes everything in its first pass."""
    patch.setattr("spec_worker.fill.commit", lambda certainty, masked, threshold: masked.clone())


def plant_other_logits(patch: pytest.MonkeyPatch, rows: int = 0) -> None:
    """In forwards of more than so many rows."""
    from vllm_nld.model.causal_lm import NemotronLabsDiffusionModel as Model

    compute = Model.compute_logits
    patch.setattr(Model, "compute_logits", lambda self, x: compute(self, x).roll(int(len(x) > rows), -1))


@pytest.mark.parametrize(
    ("line", "plant"),
    [
        ("ar = reference", plant_other_logits),
        ("linear = ar", plant_wrong_slots),
        ("auto = ar", plant_wrong_slots),
        ("draft logits = reference", plant_causal_drafts),
        ("draft logits = reference", plant_wrong_slots),
        ("acceptance = reference", plant_wrong_slots),
        ("diffusion = reference", plant_hasty_commits),
        ("mixed batch", lambda patch: plant_other_logits(patch, rows=2 * drafting.B)),
    ],
)
def test_a_fault_in_the_engine(line: str, plant: Callable[[pytest.MonkeyPatch], None], forgotten: Served) -> None:
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        assert of(nano.CHECKS, line, forgotten).verdict == FAIL


@pytest.mark.parametrize("line", ["draft logits = reference", "acceptance = reference"])
def test_an_adapter_that_graphs_leave_out(line: str, forgotten: Served) -> None:
    forgotten.emulation.baked = True
    try:
        assert of(nano.CHECKS, line, forgotten).verdict == FAIL
    finally:
        forgotten.emulation.baked = False


def test_passes_that_take_no_graph(forgotten: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, CUDAGraphMode

    def none(layout: Any) -> Any:
        return BatchExecutionDescriptor(CUDAGraphMode.NONE, layout.tokens, len(layout.lengths))

    monkeypatch.setattr(forgotten.speculator.graphs, "shape", none)
    monkeypatch.setattr(forgotten, "replays", type(forgotten.replays)())
    forgotten.answers("linear")
    assert of(nano.CHECKS, "draft graphs", forgotten).verdict == FAIL


def test_a_server_that_is_not_what_was_asked_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.llm.llm_engine.vllm_config.scheduler_config, "async_scheduling", False)
    monkeypatch.setattr(served.runner.model.model, "do_not_compile", False)
    found = of(nano.CHECKS, "set-up", served)
    assert found.verdict == FAIL
    assert found.text.startswith("not scheduled asynchronously; draft passes are not compiled: runner ")


def plant(code: str, file: str = "spec_worker/planted.py") -> dict[str, Any]:
    """Run code as if a file of ours held it; its names."""
    names: dict[str, Any] = {}
    exec(compile(code, str(ROOT / file), "exec"), names)
    return names


WAITS = {
    "item": "def wait(x): return x.sum().item()",
    "if": "def wait(x): return 1 if x.sum() > 0 else 0",
    "tolist": "def wait(x): return x.tolist()",
    "nonzero": "def wait(x): return x.nonzero()",
}


@pytest.mark.parametrize("code", WAITS.values(), ids=WAITS)
def test_a_planted_wait(code: str, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    propose, wait = served.speculator.propose, plant(code)["wait"]
    monkeypatch.setattr(served.speculator, "propose", lambda *a, **k: (wait(torch.ones(2)), propose(*a, **k))[1])
    found = of(nano.CHECKS, "no waits", served)
    assert found.verdict == FAIL
    assert f"linear: spec_worker/planted.py:1 ({drafting.STEPS})" in found.text and "ar: none" in found.text


def test_waits_of_code_for_cpus_do_not_count() -> None:
    for file, expected in (("attention_backend/kernels/cpu.py", 0), ("attention_backend/kernels/gpu.py", 1)):
        wait = plant(WAITS["item"], file)["wait"]
        with waits("cpu") as places:
            wait(torch.ones(2))
            torch.ones(2).tolist()  # not ours
        assert places.total() == expected


def test_waits_that_torch_warns_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where torch warns at the line that waits, each time."""
    modes: list[Any] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    wait = plant("import warnings\ndef wait():\n    warnings.warn('called a synchronizing CUDA operation')")["wait"]
    with waits("cuda") as places:
        for _ in range(3):
            wait()
    assert places == {"spec_worker/planted.py:3": 3} and modes == ["warn", 0]


# nano with few KV blocks


@pytest.fixture(scope="module")
def short() -> Iterator[Served]:
    with tight.open_tight(CPU) as served:
        yield served


@runnable(tight.CHECKS)
def test_tight(check: Check, short: Served) -> None:
    found = judge(check.run, short)
    assert found.verdict == OK, found


def test_cached_prefixes_that_were_overwritten(short: Served) -> None:
    for layer in short.llm.llm_engine.vllm_config.compilation_config.static_forward_context.values():
        layer.kv_cache.zero_()
    assert of(tight.CHECKS, "prefix cache", short).verdict == FAIL
    short.llm.reset_prefix_cache()


def test_drafts_in_the_wrong_slots(short: Served) -> None:
    with pytest.MonkeyPatch.context() as patch:
        plant_wrong_slots(patch)
        assert of(tight.CHECKS, "preemption", short).verdict == FAIL
    short.llm.reset_prefix_cache()


# A released shape; on a CPU a tiny one


@pytest.fixture(scope="module")
def shaped() -> Iterator[Served]:
    with shape.open_shape(CPU) as served:
        yield served


@runnable(shape.CHECKS)
def test_shape(check: Check, shaped: Served) -> None:
    found = judge(check.run, shaped)
    assert found.verdict == OK, found


def test_a_profile_that_leaves_candidates_out(shaped: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spec_worker.candidates.Candidates.profile", lambda *_: None)
    assert of(shape.CHECKS, "candidates' memory", shaped).verdict == FAIL


def test_random_weights_have_unit_gain() -> None:
    from torch import nn

    model = nn.ModuleDict(
        {"embed_tokens": nn.Embedding(64, 32), "norm": nn.RMSNorm(4096), "proj": nn.Linear(400, 300, bias=False)}
    )
    torch.manual_seed(0)
    shape.randomize(model)
    embedding, norm, product = (next(part.parameters()).detach() for part in model.values())
    assert embedding.std() == pytest.approx(1, rel=0.1) and norm.mean() == pytest.approx(1, rel=0.01)
    assert product.std() * 400**0.5 == pytest.approx(1.5, rel=0.1)


def test_answers_that_say_nothing(shaped: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shaped, "told", {AR: [shaped.answers(AR)[0]] * 8})
    assert of(shape.CHECKS, "answers", shaped).verdict == FAIL


# Costs


@pytest.fixture(scope="module")
def costed() -> Iterator[cost.Engine]:
    with cost.open_engine(cost.DRAFTING, CPU) as engine:
        yield engine


DRAFTING, STOCK, PLAIN = cost.subjects(CPU)


@runnable(DRAFTING.checks)
def test_cost(check: Check, costed: cost.Engine) -> None:
    found = judge(check.run, costed)
    assert found.verdict == FIGURE, found
    if " × " in check.name:
        assert found.data["ms"] > 0 and 0 < found.data["idle"] < 1


def test_a_host_that_holds_the_device_up(costed: cost.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_memory_of_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
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


def made_up(idle: float = 0.01, draft: float = 4.0, table: tuple[float, ...] = (5.0, 11.0, 12.0, 14.0)) -> Any:
    """A GPU's figures: at one request long blocks pay, unless the controller's table is wrong."""
    ms, lengths = (5.0, 11.0, 12.0, 14.0), (1, 8, 16, 32)
    parts = {"verify forward": 4.0, "draft forward": draft}
    cells = {(1, b): {"ms": m, "idle": idle, "parts": parts} for b, m in zip(lengths, ms, strict=True)}
    costs = SimpleNamespace(of=lambda requests: list(table))
    auto = SimpleNamespace(controller=SimpleNamespace(lengths=lengths, costs=costs))
    core = SimpleNamespace(engine_core=SimpleNamespace(scheduler=SimpleNamespace(auto=auto)))
    return SimpleNamespace(setting=GPU, cells=cells, llm=SimpleNamespace(llm_engine=SimpleNamespace(engine_core=core)))


@pytest.mark.parametrize(
    ("run", "wrong"),
    [
        (cost.host_gaps, {"idle": 0.06}),
        (cost.adapter, {"draft": 9.0}),
        (controller.choices, {"table": (5.0, 60.0, 70.0, 90.0)}),
    ],
    ids=["host gaps", "draft forward", "choices of auto"],
)
def test_figures_of_a_gpu_that_are_off(run: Callable[[Any], Finding], wrong: dict[str, Any]) -> None:
    assert run(made_up()).verdict == OK
    assert run(made_up(**wrong)).verdict == DIFF


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


def test_answers_are_plain_data(served: Served) -> None:
    assert all(isinstance(token, int) for answer in token_ids(served.answers(AR)) for token in answer)


class Asked(Exception):
    """What an engine was asked for."""


@pytest.mark.parametrize(
    "subject",
    [item for item in plan(GPU) if item.group in ("nano", "shape", "cost") and isinstance(item, Subject)],
    ids=lambda item: item.name,
)
def test_engine_options_on_a_gpu(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
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
