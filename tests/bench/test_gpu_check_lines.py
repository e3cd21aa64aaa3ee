"""The lines of `python -m bench gpu_check` in their CPU form: right as things are, and wrong once their subject is."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attention_backend.kernels import gpu
from bench.gpu_check import answers, kernels, machine, nano
from bench.gpu_check.record import DIFF, FAIL, OK, Check, Setting, judge
from tests.attention_backend import flash, launches
from tests.bench.faults import CPU, GPU, Fault, Patch, each, find, of, runnable

# machine


@pytest.fixture(scope="module")
def loaded() -> Iterator[Setting]:
    with machine.ready(CPU) as setting:
        yield setting


@runnable(machine.CHECKS)
def test_machine(check: Check, loaded: Setting) -> None:
    assert judge(check.run, loaded).verdict == OK


def idle_operator(patch: Patch, setting: Setting) -> None:
    patch.setattr("vllm._custom_ops.rms_norm", lambda out, *_: out.zero_())


def idle_activation(patch: Patch, setting: Setting) -> None:
    patch.setattr(torch.ops._C, "silu_and_mul", lambda out, x: out.zero_())


def fewer_bits(patch: Patch, setting: Setting) -> None:
    product = torch.Tensor.__matmul__
    fewer = lambda a, b: product(a, b) if a.dtype == torch.float64 else product(a.bfloat16(), b.bfloat16()).float()  # noqa: E731 - short
    patch.setattr(torch.Tensor, "__matmul__", fewer)


def absent_patch(patch: Patch, setting: Setting) -> None:
    from vllm_nld.compat import register

    states = [dataclasses.replace(state, kind="not applied") for state in register.states()[:1]]
    patch.setattr(register, "states", lambda: states)


def no_drafting_backend(patch: Patch, setting: Setting) -> None:
    from attention_backend import backend

    patch.delitem(backend.KERNELS, "CPU_ATTN")


def old_flash_attention(patch: Patch, setting: Setting) -> Setting:
    patch.setattr("vllm.v1.attention.backends.fa_utils.get_flash_attn_version", lambda: 2)
    patch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    return GPU


def reading(view: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Patch, Setting], Setting]:
    """On a made-up GPU that reads the host's memory so."""

    def plant(patch: Patch, setting: Setting) -> Setting:
        zeros = torch.zeros
        patch.setattr(torch, "zeros", lambda *size, dtype, pin_memory: zeros(*size, dtype=dtype))
        patch.setattr(torch.cuda, "synchronize", lambda: None)
        patch.setattr("vllm.utils.torch_utils.get_accelerator_view_from_cpu_tensor", view)
        return GPU

    return plant


def choosing(drafting: str, plain: str) -> Callable[[Patch, Setting], Setting]:
    """On a made-up platform with compute capability 9.0."""

    def valid(capability: Any, config: Any, num_heads: int) -> tuple[list[Any], dict]:
        named = [SimpleNamespace(priority=1, backend=SimpleNamespace(name="FLEX_ATTENTION"))]
        chosen = drafting if config.use_non_causal else plain
        return [*named, SimpleNamespace(priority=0, backend=SimpleNamespace(name=chosen))], {}

    def plant(patch: Patch, setting: Setting) -> Setting:
        patch.setattr("vllm.platforms._current_platform", SimpleNamespace(get_valid_backends=valid))
        patch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
        return GPU

    return plant


def untested_release(patch: Patch, setting: Setting) -> None:
    patch.setattr("vllm_nld.compat.versions.vllm_version", lambda: "0.99.0")


MACHINE = (
    Fault("versions", "another vLLM", untested_release, "tested with vLLM 0.32.0", DIFF),
    Fault("plugin", "a patch does not apply", absent_patch, "not applied"),
    Fault("compiled operators", "RMSNorm writes zeros", idle_operator, "largest errors: rms_norm"),
    Fault("compiled operators", "SiLU writes zeros", idle_activation, "silu_and_mul"),
    Fault("host memory", "the device has a copy", reading(torch.clone), "written 0, 0, 7, 0, read [0, 0, 0, 0]"),
    Fault("fp32 products", "rounded to bf16", fewer_bits, "TF32 is on", DIFF),
    Fault("attention backends", "none drafts", no_drafting_backend, "CPU_ATTN: loads, AR only"),
    Fault("attention backends", "an old FlashAttention", old_flash_attention, "FlashAttention 2 instead of 3", DIFF),
    Fault("backend choice", "one that cannot draft", choosing("FLASHINFER", "FLASH_ATTN"), "would not start"),
    Fault("backend choice", "not stock's for AR", choosing("FLASH_ATTN", "TRITON_ATTN"), "AR-only TRITON_ATTN", DIFF),
)


@each(MACHINE)
def test_machine_fault(fault: Fault, loaded: Setting) -> None:
    find(fault, machine.CHECKS, loaded)


@pytest.mark.parametrize(
    ("line", "plant"),
    [("host memory", reading(lambda host: host)), ("backend choice", choosing("FLASH_ATTN", "FLASH_ATTN"))],
)
def test_lines_for_gpus(line: str, plant: Callable[[Patch, Setting], Setting], monkeypatch: Patch) -> None:
    """They pass where nothing is planted."""
    assert of(machine.CHECKS, line, plant(monkeypatch, CPU)).verdict == OK


# kernels

CHECKS = tuple(kernels.checks())


@runnable(CHECKS)
def test_kernels(check: Check, loaded: Setting) -> None:
    found = judge(check.run, loaded)
    assert found.verdict == OK, found


def one_off(written: str) -> Callable[[Patch, Setting], None]:
    """The kernel's first slot, token, mask or row is the next one."""

    def plant(patch: Patch, setting: Setting) -> None:
        from tests.triton_cpu import harness

        kernel_of = harness.kernel_of

        def off_by_one(module: str, kernel: str) -> Any:
            right = kernel_of(module, kernel)

            def run(**arguments: Any) -> None:
                right.run(**arguments)
                arguments[written].view(-1)[0] += 1

            return SimpleNamespace(run=run, arg_names=right.arg_names)

        patch.setattr(harness, "kernel_of", off_by_one)

    return plant


def wrong_rows(patch: Patch, setting: Setting) -> None:
    def rolled(metadata: Any, mask: Any, attach: Callable[..., None] = launches.attach) -> None:
        attach(metadata, dataclasses.replace(mask, bits=mask.bits.roll(1, 0)))

    patch.setattr(launches, "attach", rolled)


def wrong_slots(patch: Patch, setting: Setting) -> None:
    patch.setattr(launches, "cache_of", lambda step, right=launches.cache_of: right(step).nan_to_num().roll(1, 2))


def unmerged_parts(patch: Patch, setting: Setting) -> None:
    patch.setattr(gpu, "merge_kernel", defaultdict(lambda: lambda *_, **__: None))


def everybodys_rows(patch: Patch, setting: Setting) -> None:
    def run(query: Any, cache: Any, bits: Any, requests: Any, count: int, starts: Any, *rest: Any) -> None:
        gpu.launch(query, cache, bits, None, len(starts) - 1, starts, *rest)

    patch.setattr(launches.launch, "__defaults__", (run,))


def causal_drafts(patch: Patch, setting: Setting) -> None:
    metadata = launches._metadata
    patch.setattr(launches, "_metadata", lambda name, step, causal: metadata(name, step, True))


def flash_attention(**wrong: Any) -> Callable[[Patch, Setting], None]:
    """FlashAttention gets other arguments than vLLM's; a callable makes one of what vLLM has given."""

    def plant(patch: Patch, setting: Setting) -> None:
        right = flash.varlen

        def varlen(**given: Any) -> Any:
            return right(**given | {name: to(given[name]) if callable(to) else to for name, to in wrong.items()})

        patch.setattr(flash, "varlen", varlen)

    return plant


WRITTEN = {"lay_blocks": "ids_ptr", "fill_pass": "slots_ptr", "grow_trees": "tokens_ptr", "mask_rows": "bits_ptr"}
WRITTEN |= {"walk_trees": "path_ptr"}
PARTS = [f"masks {dtype}, keys in {parts} parts" for dtype in kernels.BOUNDS for parts in (1, 8)]
BACKENDS = ("FLASH_ATTN bfloat16", "TRITON_ATTN bfloat16", "TRITON_ATTN float32")
FLASH = "FLASH_ATTN bfloat16 looks ahead"
KERNELS = (
    *(Fault(f"{name} = its twin", "one off", one_off(where), "seed 0") for name, where in WRITTEN.items()),
    *(Fault(line, "it reads the wrong slots", wrong_slots, "largest error") for line in PARTS),
    Fault(PARTS[1], "parts are not merged", unmerged_parts, "largest error inf"),
    Fault(PARTS[0], "it writes everybody's rows", everybodys_rows, "rows of a request without a mask were written"),
    *(Fault(f"{name} beside masks", "a row has another's mask", wrong_rows, "largest error") for name in BACKENDS),
    *(Fault(f"{name} looks ahead", "drafts are causal", causal_drafts, "largest error") for name in BACKENDS),
    Fault(FLASH, "its kernel ignores causal=False", flash_attention(causal=True), "largest error"),
    Fault(FLASH, "another page", flash_attention(block_table=lambda table: table.roll(1, 1)), "largest error"),
    Fault(FLASH, "no page that is not full", flash_attention(seqused_k=lambda n: n // 16 * 16), "largest error"),
    Fault("FLASH_ATTN bfloat16 beside masks", "others look ahead", flash_attention(causal=False), "largest error"),
)


@each(KERNELS)
def test_kernel_fault(fault: Fault, loaded: Setting) -> None:
    find(fault, CHECKS, loaded)


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
