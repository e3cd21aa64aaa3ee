"""The lines of `python -m bench gpu_check` in their CPU form: right as things are, and wrong once their subject is."""

import dataclasses
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.gpu_check import answers, kernels, machine, nano
from bench.gpu_check.record import DIFF, FAIL, FIGURE, OK, Check, Finding, Setting, judge

CPU = Setting(gpu=False, quick=True)
GPU = Setting(gpu=True)


def runnable(checks: tuple[Check, ...]) -> Any:
    """Parametrize a test by the checks that have a CPU form."""
    return pytest.mark.parametrize("check", [c for c in checks if not c.gpu_only], ids=lambda check: check.name)


def of(checks: tuple[Check, ...], name: str, given: Any) -> Finding:
    """The finding of one check."""
    return judge(next(check for check in checks if check.name == name).run, given)


# machine


@pytest.fixture(scope="module")
def loaded() -> Iterator[Setting]:
    with machine.ready(CPU) as setting:
        yield setting


@runnable(machine.CHECKS)
def test_machine(check: Check, loaded: Setting) -> None:
    assert judge(check.run, loaded).verdict in (OK, FIGURE)


def test_an_operator_that_does_nothing(loaded: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import _custom_ops

    monkeypatch.setattr(_custom_ops, "rms_norm", lambda out, *_: out.zero_())
    assert of(machine.CHECKS, "compiled operators", loaded).verdict == FAIL


def test_products_with_fewer_bits(loaded: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    product = torch.Tensor.__matmul__
    fewer = lambda a, b: product(a, b) if a.dtype == torch.float64 else product(a.bfloat16(), b.bfloat16()).float()  # noqa: E731 - short
    monkeypatch.setattr(torch.Tensor, "__matmul__", fewer)
    assert of(machine.CHECKS, "fp32 products", loaded).verdict == DIFF


def test_a_patch_that_does_not_apply(loaded: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_nld.compat import register

    states = [dataclasses.replace(state, kind="not applied") for state in register.states()[:1]]
    monkeypatch.setattr(register, "states", lambda: states)
    assert of(machine.CHECKS, "plugin", loaded).verdict == FAIL


def test_no_backend_that_drafts(loaded: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    from attention_backend import backend

    monkeypatch.delitem(backend.KERNELS, "CPU_ATTN")
    assert of(machine.CHECKS, "attention backends", loaded).verdict == FAIL


@pytest.mark.parametrize(("view", "verdict"), [(lambda host: host, OK), (torch.clone, FAIL)], ids=["seen", "copied"])
def test_a_device_that_does_not_read_the_host(view: Any, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, dtype, pin_memory: zeros(*size, dtype=dtype))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr("vllm.utils.torch_utils.get_accelerator_view_from_cpu_tensor", view)
    assert of(machine.CHECKS, "host memory", GPU).verdict == verdict


@pytest.mark.parametrize(
    ("drafting", "plain", "verdict"),
    [("FLASH_ATTN", "FLASH_ATTN", OK), ("FLASHINFER", "FLASH_ATTN", FAIL), ("FLASH_ATTN", "TRITON_ATTN", DIFF)],
)
def test_the_choice_of_a_backend(drafting: str, plain: str, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a made-up platform with compute capability 9.0."""
    from vllm import platforms

    def valid(capability: Any, config: Any, num_heads: int) -> tuple[list[Any], dict]:
        named = [SimpleNamespace(priority=1, backend=SimpleNamespace(name="FLEX_ATTENTION"))]
        chosen = drafting if config.use_non_causal else plain
        return [*named, SimpleNamespace(priority=0, backend=SimpleNamespace(name=chosen))], {}

    monkeypatch.setattr(platforms, "_current_platform", SimpleNamespace(get_valid_backends=valid))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert of(machine.CHECKS, "backend choice", GPU).verdict == verdict


# kernels

KERNELS = tuple(kernels.checks())
WRITTEN = {"lay_blocks": "ids_ptr", "fill_pass": "slots_ptr", "grow_trees": "tokens_ptr", "mask_rows": "bits_ptr"}
WRITTEN |= {"walk_trees": "path_ptr"}


@runnable(KERNELS)
def test_kernels(check: Check, loaded: Setting) -> None:
    assert judge(check.run, loaded).verdict == OK


@pytest.mark.parametrize("name", WRITTEN)
def test_a_kernel_that_writes_something_else(name: str, loaded: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """One off: a wrong slot, token, mask or row."""
    from tests.triton_cpu import harness

    kernel_of = harness.kernel_of

    def off_by_one(module: str, kernel: str) -> Any:
        right = kernel_of(module, kernel)

        def run(**arguments: Any) -> None:
            right.run(**arguments)
            arguments[WRITTEN[name]].view(-1)[0] += 1

        return SimpleNamespace(run=run, arg_names=right.arg_names)

    monkeypatch.setattr(harness, "kernel_of", off_by_one)
    assert of(KERNELS, f"{name} = its twin", loaded).verdict == FAIL


def test_attention_that_sees_the_wrong_rows(loaded: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.attention_backend import launches

    def rolled(metadata: Any, mask: Any, attach: Callable[..., None] = launches.attach) -> None:
        attach(metadata, dataclasses.replace(mask, bits=mask.bits.roll(1, 0)))

    monkeypatch.setattr(launches, "attach", rolled)
    assert of(KERNELS, "TRITON_ATTN float32 beside masks", loaded).verdict == FAIL


def test_attention_that_reads_the_wrong_slots(loaded: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.attention_backend import launches

    monkeypatch.setattr(launches, "cache_of", lambda step, right=launches.cache_of: right(step).nan_to_num().roll(1, 2))
    for dtype in kernels.BOUNDS:
        assert of(KERNELS, f"masks {dtype}, keys in 1 parts", loaded).verdict == FAIL


def test_attention_that_does_not_look_ahead(loaded: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.attention_backend import launches

    metadata = launches._metadata
    monkeypatch.setattr(launches, "_metadata", lambda name, step, causal: metadata(name, step, True))
    assert of(KERNELS, "TRITON_ATTN float32 looks ahead", loaded).verdict == FAIL


# Answers


def test_verdicts_on_answers() -> None:
    exact, known = [[1, 2, 3]], [[{1: -0.1, 5: -0.2}, {2: -0.1, 4: -4.0}, {3: -0.1}]]
    tie, wrong = [[5, 2, 3]], [[1, 4, 3]]
    for dtype, verdicts in (("float32", (OK, DIFF, FAIL)), ("bfloat16", (OK, OK, FAIL))):
        assert tuple(answers.lossless(ours, exact, known, dtype).verdict for ours in (exact, tie, wrong)) == verdicts
        data = {"tokens": exact, "known": known}
        assert nano.as_ar(dtype, {"tokens": wrong}, data).verdict == FAIL
    many = exact * 3
    few, most = [*exact * 2, *wrong], [*exact, *wrong * 2]
    assert [answers.same(ours, many, "bfloat16").verdict for ours in (many, few, most)] == [OK, OK, DIFF]
    assert [nano.as_diffusion("float32", {"tokens": x}, {"tokens": many}).verdict for x in (many, few)] == [OK, FAIL]
    assert "Answers 2 from token 1" in answers.same(few, many, "float32").text
