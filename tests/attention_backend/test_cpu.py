"""Row masks on the CPU: the backend equals the dense reference, and vLLM's kernel keeps the requests without a mask."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings

from attention_backend.backend import BlockMaskBackend
from attention_backend.kernels import cpu
from attention_backend.kernels.pages import packing
from attention_backend.masks import Causal
from attention_backend.rows import RowMask, attach, step_mask
from tests.attention_backend.steps import Step, assert_close, steps, trees
from tests.scale import scaled
from vllm_nld.serving.cpu import emulates_half_precision

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="runs the CPU kernel")
CONFIG = "vllm.v1.attention.backends.cpu_attn.get_current_vllm_config"


def layers(step: Step, *masks: RowMask | None, unused: float = 7.0) -> list[torch.Tensor]:  # [T, H, D] each
    """The step through the backend: cache update, metadata, and one layer per mask."""
    from vllm import _custom_ops as ops
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadata, _get_attn_isa

    heads, size, groups = step.query.shape[1], step.query.shape[2], step.keys[0].shape[1]
    backend = BlockMaskBackend.over(_cpu_backend())
    with patch(CONFIG, lambda: SimpleNamespace(model_config=SimpleNamespace(dtype=step.dtype))):
        impl = backend.get_impl_cls()(heads, size, step.scale, groups, None, None, "auto")
    isa = _get_attn_isa(step.dtype, step.page_size, size, "auto")
    layer = SimpleNamespace(isa=isa, _k_scale_float=1.0, _v_scale_float=1.0)
    cache = torch.full((step.pages, groups, step.page_size, 2 * size), unused, dtype=step.dtype)
    for request, (key, value) in enumerate(zip(step.keys, step.values, strict=True)):
        impl.do_kv_cache_update(layer, key, value, cache, step.slots(request))
    schedule = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=len(step.lengths),
        num_heads=heads,
        num_kv_heads=groups,
        head_dim=size,
        seq_lens=step.totals(),
        dtype=step.dtype,
        query_start_loc=step.starts(),
        causal=True,
        sliding_window_size=-1,
        isa=isa,
        enable_kv_split=False,
    )
    metadata = CPUAttentionMetadata(
        sum(step.lengths),
        max(step.lengths),
        step.starts(),
        int(step.totals().max()),
        step.totals(),
        step.table,
        torch.zeros(0),
        schedule,
    )
    new = [torch.cat([x[-t:] for x, t in zip(xs, step.lengths, strict=True)]) for xs in (step.keys, step.values)]
    outputs = []
    for mask in masks:
        attach({"layer": metadata}, mask)
        output = torch.full_like(step.query, float("nan"))
        outputs.append(impl.forward(layer, step.query, *new, cache, metadata, output))
    return outputs


@settings(max_examples=scaled(200), deadline=None, derandomize=True)
@given(steps([32, 64]))
def test_output_equals_the_reference(step: Step) -> None:
    """Mixed batches, contexts over page edges, grouped heads."""
    (output,) = layers(step, step.mask)
    assert_close(output, step)


@settings(max_examples=scaled(40), deadline=None, derandomize=True)
@given(steps([32, 64]))
def test_requests_without_a_mask_keep_their_kernel(step: Step) -> None:
    """Their output is the same to the bit, whatever their neighbors in the batch do."""
    plain, mixed = layers(step, None, step.mask)
    rows = step.plain_rows()
    assert torch.equal(plain[rows], mixed[rows])


@settings(max_examples=scaled(40), deadline=None, derandomize=True)
@given(steps([32]))
def test_what_a_page_held_before_does_not_count(step: Step) -> None:
    """Not even NaN, although requests are padded to the largest of those that are computed at once."""
    (clean,), (output,) = layers(step, step.mask), layers(step, step.mask, unused=float("nan"))
    masked = ~step.plain_rows()
    assert torch.equal(clean[masked], output[masked])


@settings(max_examples=scaled(20), deadline=None, derandomize=True)
@given(steps([32], masks=trees))
def test_many_rows_are_computed_in_parts(step: Step) -> None:
    with patch.object(cpu, "SCORES", 5 * step.query.shape[1] * int(step.totals().max())):
        (output,) = layers(step, step.mask)
    assert_close(output, step)


@settings(max_examples=scaled(20), deadline=None, derandomize=True)
@given(steps([32], requests=2))
def test_layers_share_what_is_prepared_but_not_with_another_mask(step: Step) -> None:
    causal = step_mask([Causal(length) for length in step.lengths], step.lengths)
    first, second, third, fourth = layers(step, step.mask, mask := step.mask, mask, causal)
    assert torch.equal(first, second) and torch.equal(second, third)
    assert_close(first, step)
    assert_close(fourth, replace(step, masks=[None] * len(step.masks)))


@pytest.mark.parametrize(("page_size", "head_size"), [(32, 32), (32, 128), (128, 64)])
@pytest.mark.parametrize(
    ("isa", "dtype"),
    [("vec", torch.float32), ("vec", torch.bfloat16), ("vec16", torch.bfloat16), ("amx", torch.bfloat16)],
    ids=str,
)
def test_pages_are_read_in_every_packing(isa: str, dtype: torch.dtype, page_size: int, head_size: int) -> None:
    """The tiles of a matrix unit as well: storing them needs none."""
    if isa == "amx" and emulates_half_precision():
        pytest.skip("vLLM's kernels for CPUs without AVX-512 have no tiles")
    from vllm import _custom_ops as ops

    key, value = torch.randn(2, 3 * page_size, 2, head_size).to(dtype)
    cache = torch.zeros(4, 2, page_size, 2 * head_size, dtype=dtype)
    halves = cache.view(4, 2, 2 * page_size, head_size).chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(key, value, *halves, torch.arange(3 * page_size), isa)
    read = packing(isa, page_size, head_size, dtype).read(cache, torch.tensor([[2, 0]]))
    for stored, got in zip((key, value), read, strict=True):
        pages = stored.unflatten(0, (3, page_size))[[2, 0]].flatten(0, 1)
        assert torch.equal(got, pages.transpose(0, 1).float())


def _cpu_backend() -> Any:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    return CPUAttentionBackend
