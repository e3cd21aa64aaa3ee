"""Row masks on a GPU: the Triton kernels equal the dense reference, in the interpreter or on a device."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from vllm.triton_utils import tl

from attention_backend.kernels import bitset, gpu
from attention_backend.masks import Block, Causal, Mask, Tree
from attention_backend.rows import RowMask
from tests.attention_backend.launches import DEVICE, cache_of, fixed_step, launch, through_backend
from tests.attention_backend.steps import Step, assert_close, steps
from tests.gpu_compiler import compile_kernel
from tests.scale import scaled

# No shrinking: a failing case is small, and the interpreter takes a while.
PHASES = (Phase.explicit, Phase.generate)
HEADS = ((4, 2), (2, 1), (3, 1), (8, 1))


@settings(max_examples=scaled(200), deadline=None, derandomize=True, phases=PHASES)
@given(steps([16, 32], requests=2, heads=HEADS), st.sampled_from([1, 1, 2, 4]), st.sampled_from([64, 256]))
def test_output_equals_the_reference(step: Step, segments: int, lanes: int) -> None:
    """Mixed batches, contexts over page edges, grouped heads, keys split between programs."""
    with patch.object(gpu, "LANES", lanes):
        output = launch(step, segments)
    plain = step.plain_rows()
    assert output[plain].isnan().all(), "wrote rows of a request without a mask"
    output[plain] = step.expected()[plain].to(output.dtype)
    assert_close(output, step)


@settings(max_examples=scaled(12), deadline=None, derandomize=True, phases=PHASES)
@given(steps([16], requests=3, heads=HEADS, head_sizes=(32, 64)))
def test_vllms_triton_backend_with_masks(step: Step) -> None:
    """Its own cache update, and its own kernel for requests without a mask."""
    mask = step.mask
    assert mask is not None
    on_device = RowMask(mask.bits.to(DEVICE), mask.requests)
    assert_close(through_backend(step, on_device), step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_vllms_triton_backend_looks_ahead(dtype: torch.dtype) -> None:
    """With `causal=False`, as draft passes use it: a row sees its request's whole block, and no other request."""
    step = fixed_step([Block(5), Block(3)], [30, 0], [5, 3], dtype=dtype)
    assert_close(through_backend(step, None, causal=False), step)
    with pytest.raises(AssertionError):
        assert_close(through_backend(step, None), step)


@pytest.mark.parametrize("masks", [[Tree((-1, 0, 0)), None], [Tree((-1, 0, 0)), Block(2)]], ids=["mixed", "all"])
def test_vllms_kernel_runs_only_for_requests_without_a_mask(masks: list[Mask | None]) -> None:
    """Before ours, which overwrites rows; the list of requests is copied to the device once for all layers."""
    step = fixed_step(masks, [20, 5], [3, 2])
    mask, runs = step.mask, []
    assert mask is not None
    metadata = SimpleNamespace(
        seq_lens=step.totals().to(DEVICE),
        query_start_loc=step.starts().to(DEVICE),
        block_table=step.table.to(DEVICE),
        max_query_len=3,
        max_seq_len=23,
    )
    on_device = RowMask(mask.bits.to(DEVICE), mask.requests)
    for _ in range(2):
        output = torch.zeros_like(step.query, device=DEVICE)

        def kernel(given: Any, output: torch.Tensor = output) -> None:
            runs.append((given, getattr(given, "masked_requests", None)))
            output.fill_(7.0)

        impl = SimpleNamespace(scale=step.scale)
        gpu.attend(impl, None, step.query.to(DEVICE), cache_of(step), metadata, on_device, output, kernel)
        plain = step.plain_rows()
        assert (output.cpu()[plain] == 7.0).all()
        torch.testing.assert_close(output.cpu()[~plain], step.expected()[~plain], atol=2e-5, rtol=2e-5)
    mixed = None in masks
    assert [given for given, _ in runs] == [metadata] * (2 if mixed else 0)
    if mixed:
        assert runs[0][1] is None and runs[1][1] is metadata.masked_requests


@pytest.fixture
def xformers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Our module for it. Without a GPU, its kernels run in the interpreter, if Triton still has block pointers."""
    pytest.importorskip("xformers", reason="pip install xformers==0.0.35")
    from attention_backend.kernels import xformers

    if DEVICE == "cpu":
        if tl.make_block_ptr.__doc__ and "removed" in tl.make_block_ptr.__doc__:
            pytest.skip("needs a Triton with block pointers: pip install triton==3.7.1")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
        monkeypatch.setattr(torch.cuda, "device", lambda *_: contextlib.nullcontext())
        for operator in (xformers.Prefix, xformers.Own):
            monkeypatch.setattr(operator, "not_supported_reasons", lambda *_: [])
        merge = xformers.fmha.triton_splitk.merge_attentions_varargs
        merge.register_kernel("cpu")(merge._init_fn)
    return xformers


@settings(
    max_examples=scaled(200),
    deadline=None,
    derandomize=True,
    phases=PHASES,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps([16, 32], requests=3, heads=HEADS, dtypes=(torch.float16, torch.bfloat16)))
def test_xformers_equals_the_reference(xformers: Any, step: Step) -> None:
    output = launch(step, 1, xformers.launch)
    plain = step.plain_rows()
    assert output[plain].isnan().all(), "wrote rows of a request without a mask"
    output[plain] = step.expected()[plain].to(output.dtype)
    assert_close(output, step)


def test_xformers_needs_the_tokens_of_a_page_in_a_row(xformers: Any) -> None:
    with pytest.raises(ValueError, match="VLLM_KV_CACHE_LAYOUT=LBNHC"):
        xformers._tokens(torch.zeros(3, 2, 16, 64))


@pytest.mark.gpu
def test_a_cuda_graph_follows_its_buffers() -> None:
    """Captured with one step's mask and lengths, replayed with another's."""
    first = fixed_step([Tree((-1, 0, 0)), Causal(3)], [20, 5], [3, 3])
    second = fixed_step([Block(3), Tree((-1, 0, 1))], [41, 0], [3, 3])
    assert first.mask is not None and second.mask is not None
    cache, other = cache_of(first), cache_of(second)
    sources = (first.query, first.mask.bits, first.starts(), first.totals(), first.table)
    query, bits, starts, lengths, table = (source.to(DEVICE) for source in sources)
    output = torch.empty_like(query)

    def run() -> None:
        gpu.launch(query, cache, bits, None, 2, starts, lengths, table, 3, first.scale, output, segments=2)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for step, pages in ((first, cache.clone()), (second, other)):
        cache.copy_(pages)
        query.copy_(step.query)
        bits.copy_(step.mask.bits)  # type: ignore[union-attr]  # see above
        lengths.copy_(step.totals())
        graph.replay()
        assert_close(output.cpu(), step)


@pytest.mark.parametrize(
    ("programs", "length", "expected"),
    [(8, 8192, 16), (16, 8192, 16), (40, 8192, 4), (8, 1100, 4), (8, 100, 1), (999, 8192, 1)],
)
def test_keys_are_split_until_the_device_is_full(programs: int, length: int, expected: int) -> None:
    assert gpu.segments(programs, length, multiprocessors=132) == expected


POINTERS = {
    **dict.fromkeys(["partial_ptr", "share_ptr"], "*fp32"),
    **dict.fromkeys(["bits_ptr", "requests_ptr", "starts_ptr", "lengths_ptr", "table_ptr"], "*i32"),
    "scale": "fp32",
}
SHAPES = {"SHARING": 4, "ROWS": 16, "LANES": 64, "PAGE": 16}


@pytest.mark.parametrize(
    ("dtype", "size", "segments", "everyone"),
    [("bf16", 128, 8, False), ("fp16", 64, 1, True), ("fp32", 32, 1, False)],
)
def test_attention_compiles_for_a_gpu(dtype: str, size: int, segments: int, everyone: bool, tmp_path: Path) -> None:
    types = POINTERS | dict.fromkeys(["output_ptr", "query_ptr", "cache_ptr"], f"*{dtype}")
    constants = SHAPES | {"SIZE": size, "WIDTH": size, "KEYS": 32 if dtype == "fp32" else 64}
    constants |= {"ALL": everyone, "SEGMENTS": segments}
    compile_kernel(Path(bitset.__file__), "attend_kernel", types, constants, tmp_path)


def test_merging_compiles_for_a_gpu(tmp_path: Path) -> None:
    names = ("partial_ptr", "share_ptr", "requests_ptr", "starts_ptr")
    types = {name: POINTERS[name] for name in names} | {"output_ptr": "*bf16"}
    constants = {"ALL": False, "SEGMENTS": 8, "SIZE": 128, "WIDTH": 128}
    compile_kernel(Path(bitset.__file__), "merge_kernel", types, constants, tmp_path)
