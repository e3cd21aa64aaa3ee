"""The lines of `python -m bench gpu_check` that need an engine, in their CPU form; see test_gpu_check_lines.py."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from bench.gpu_check import drafting, nano, shape, tight, vision
from bench.gpu_check.record import DIFF, OK, Check, judge
from bench.gpu_check.served import AR, Served, token_ids
from bench.gpu_check.waits import waits
from tests.bench.engine_faults import (
    SET_UP,
    WAITS,
    baked_adapter,
    causal_drafts,
    hasty_commits,
    mostly_eager,
    no_graphs,
    other_logits,
    planted,
    unexpected_graphs,
    waiting,
    waits_of,
    wrong_slots,
)
from tests.bench.faults import CPU, Fault, Patch, each, find, runnable

# nano


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with nano.open_nano(nano.Case("float32", True, "CPU_ATTN"), CPU) as served:
        yield served


@pytest.fixture
def anew(served: Served) -> Iterator[Served]:
    """Answers are asked for in the test, and after it."""
    told, served.told = served.told, {}
    yield served
    served.told = told
    served.llm.reset_prefix_cache()


@runnable(nano.CHECKS)
def test_nano(check: Check, served: Served) -> None:
    found = judge(check.run, served)
    assert found.verdict == OK, found


NANO = (
    SET_UP,
    Fault("ar = reference", "other logits", other_logits(), "no near tie. Answers 0 from token 0"),
    Fault("linear = ar", "drafts overwrite accepted KV", wrong_slots, "no near tie"),
    Fault("auto = ar", "drafts overwrite accepted KV", wrong_slots, "no near tie"),
    Fault("draft logits = reference", "drafts are causal", causal_drafts, "relative error on"),
    Fault("draft logits = reference", "drafts write to other slots", wrong_slots, "relative error on"),
    Fault("draft logits = reference", "graphs without the adapter", baked_adapter, "of the adapter's effect 1.0e+00"),
    Fault("acceptance = reference", "drafts write to other slots", wrong_slots, "acceptance length"),
    Fault("acceptance = reference", "graphs without the adapter", baked_adapter, "without the adapter"),
    Fault("diffusion = reference", "one pass per block", hasty_commits, "answers differ"),
    Fault("mixed batch", "large batches have other logits", other_logits(2 * drafting.B), "answers differ"),
    Fault("draft graphs", "no pass takes one", no_graphs, "; 0 passes replayed one"),
    Fault("draft graphs", "most passes take none", mostly_eager, "ran without", DIFF),
    Fault("draft graphs", "an eager server has some", unexpected_graphs, "passes replayed one"),
    *(Fault("no waits", f"a wait by {name}", waiting(code), waits_of("linear")) for name, code in WAITS.items()),
)


@each(NANO)
def test_nano_fault(fault: Fault, anew: Served) -> None:
    find(fault, nano.CHECKS, anew)


def test_waits_of_code_for_cpus_do_not_count() -> None:
    for file, expected in (("attention_backend/kernels/cpu.py", 0), ("attention_backend/kernels/gpu.py", 1)):
        wait = planted(WAITS["item()"], file)["wait"]
        with waits("cpu") as places:
            wait(torch.ones(2))
            torch.ones(2).tolist()  # not ours
        assert places.total() == expected


def test_waits_that_torch_warns_of(monkeypatch: Patch) -> None:
    """As on a GPU, where torch warns at the line that waits, each time."""
    modes: list[Any] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    wait = planted("import warnings\ndef wait():\n    warnings.warn('called a synchronizing CUDA operation')")["wait"]
    with waits("cuda") as places:
        for _ in range(3):
            wait()
    assert places == {"spec_worker/planted.py:3": 3} and modes == ["warn", 0]


def test_answers_are_plain_data(served: Served) -> None:
    assert all(isinstance(token, int) for answer in token_ids(served.answers(AR)) for token in answer)


# nano with few KV blocks


@pytest.fixture(scope="module")
def short() -> Iterator[Served]:
    with tight.open_tight(CPU) as served:
        yield served


@runnable(tight.CHECKS)
def test_tight(check: Check, short: Served) -> None:
    found = judge(check.run, short)
    assert found.verdict == OK, found


def lost_prefixes(patch: Patch, served: Served) -> None:
    """Whoever finds a prefix in the cache finds zeros."""
    scheduler = served.llm.llm_engine.engine_core.engine_core.scheduler
    layers = served.llm.llm_engine.vllm_config.compilation_config.static_forward_context.values()
    look_up = scheduler.kv_cache_manager.get_computed_blocks

    def zeroed(request: Any) -> Any:
        found = look_up(request)
        blocks = torch.tensor(found[0].get_block_ids()[0], dtype=torch.int64)
        for layer in layers:
            layer.kv_cache[blocks] = 0
        return found

    patch.setattr(scheduler.kv_cache_manager, "get_computed_blocks", zeroed)


def no_event(patch: Patch, served: Served) -> None:
    """The engine counts neither preemptions nor cached tokens."""
    patch.setattr(tight, "metric", lambda served, name: 0)


TIGHT = (
    SET_UP,
    Fault("preemption", "drafts overwrite accepted KV", wrong_slots, "answers differ"),
    Fault("preemption", "nothing is preempted", no_event, "the same; 0 preemptions", DIFF),
    Fault("prefix cache", "cached prefixes are lost", lost_prefixes, "answers differ"),
    Fault("prefix cache", "nothing is cached", no_event, "the same; 0 tokens from the cache"),
    Fault("draft graphs", "no pass takes one", no_graphs, "; 0 passes replayed one"),
    Fault("no waits", "trees wait", waiting(WAITS["tolist()"]), waits_of("tree")),
)


@each(TIGHT)
def test_tight_fault(fault: Fault, short: Served) -> None:
    find(fault, tight.CHECKS, short)
    short.llm.reset_prefix_cache()


# Pictures


@pytest.fixture(scope="module")
def sighted() -> Iterator[Served]:
    with vision.open_vision(CPU) as served:
        yield served


@runnable(vision.CHECKS)
def test_vision(check: Check, sighted: Served) -> None:
    found = judge(check.run, sighted)
    assert found.verdict == OK, found


def seen(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Patch, Served], None]:
    """The tower's features of each picture are changed."""

    def plant(patch: Patch, served: Served) -> None:
        kind = type(served.runner.model)
        embed = kind.embed_multimodal
        patch.setattr(kind, "embed_multimodal", lambda *a, **k: [change(one) for one in embed(*a, **k)])
        forget_pictures(served)

    return plant


def forget_pictures(served: Served) -> None:
    served.llm.reset_prefix_cache()
    served.llm.llm_engine.reset_mm_cache()
    served.llm.llm_engine.reset_encoder_cache()


def one_picture(patch: Patch, served: Served) -> None:
    """All pictures have one hash, by which prefixes are cached."""
    patch.setattr("vllm.multimodal.hasher.MultiModalHasher.hash_kwargs", lambda *_, **__: "picture")
    forget_pictures(served)


VISION = (
    Fault("features = reference", "rows in another order", seen(lambda x: x.roll(1, 0)), "relative error"),
    Fault("features = reference", "rounded to bf16", seen(lambda x: x.bfloat16().float()), "TF32 is off by", DIFF),
    Fault("answers = reference", "features in other places", seen(lambda x: x.roll(1, 0)), "answers differ"),
    Fault("answers = reference", "drafts overwrite accepted KV", wrong_slots, "answers differ"),
    Fault("prefix cache", "all pictures are one", one_picture, "with another one 64"),
    Fault("draft graphs", "no pass takes one", no_graphs, "; 0 passes replayed one"),
)


@each(VISION)
def test_vision_fault(fault: Fault, sighted: Served) -> None:
    find(fault, vision.CHECKS, sighted)
    forget_pictures(sighted)


# A released shape; on a CPU a tiny one


@pytest.fixture(scope="module")
def shaped() -> Iterator[Served]:
    with shape.open_shape(CPU) as served:
        yield served


@runnable(shape.CHECKS)
def test_shape(check: Check, shaped: Served) -> None:
    found = judge(check.run, shaped)
    assert found.verdict == OK, found


def no_profile(patch: Patch, served: Served) -> None:
    patch.setattr("spec_worker.candidates.Candidates.profile", lambda *_: None)


def one_answer(patch: Patch, served: Served) -> None:
    patch.setattr(served, "told", {AR: [served.answers(AR)[0]] * 8})


def forgetful(patch: Patch, served: Served) -> None:
    """Drafts overwrite accepted KV; answers other than AR's are asked for anew."""
    patch.setattr(served, "told", {AR: served.answers(AR)})
    wrong_slots(patch, served)


SHAPE = (
    SET_UP,
    Fault("answers", "all are the same", one_answer, "1 of 8 answers differ"),
    Fault("linear = ar", "drafts overwrite accepted KV", forgetful, "no near tie"),
    Fault("candidates' memory", "the profile leaves candidates out", no_profile, "MiB of drafting: profiled 0."),
)


@each(SHAPE)
def test_shape_fault(fault: Fault, shaped: Served) -> None:
    find(fault, shape.CHECKS, shaped)
    shaped.llm.reset_prefix_cache()


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
