"""Runs the GPU's attention kernels on a step: on a device, or on a CPU in Triton's interpreter."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attention_backend.backend import BlockMaskBackend
from attention_backend.kernels import gpu
from attention_backend.masks import Mask
from attention_backend.rows import RowMask, attach
from tests.attention_backend import flash
from tests.attention_backend.steps import Step
from vllm_nld.triton_cpu import interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":  # it replaces functions that compiled kernels use
    interpreter.repair()


def cache_of(step: Step) -> torch.Tensor:  # [N, G, P, 2 D]
    """vLLM's layout on a GPU, as a view of memory in another order. What belongs to no request is NaN."""
    groups, size = step.keys[0].shape[1:]
    memory = torch.full((step.pages, step.page_size, groups, 2 * size), float("nan"), dtype=step.dtype)
    for request, halves in enumerate(zip(step.keys, step.values, strict=True)):
        memory.flatten(0, 1)[step.slots(request)] = torch.cat(halves, dim=-1)
    return memory.to(DEVICE).transpose(1, 2)


def launch(step: Step, segments: int, run: Any = gpu.launch) -> torch.Tensor:  # [T, H, D], NaN where not written
    """Our kernels alone, over the requests with a mask."""
    assert step.mask is not None
    output = torch.full_like(step.query, float("nan"), device=DEVICE)
    everyone = len(step.mask.requests) == len(step.lengths)
    run(
        step.query.to(DEVICE),
        cache_of(step),
        step.mask.bits.to(DEVICE),
        None if everyone else torch.from_numpy(step.mask.requests).int().to(DEVICE),
        len(step.mask.requests),
        step.starts().to(DEVICE),
        step.totals().to(DEVICE),
        step.table.to(DEVICE),
        max(step.lengths),
        step.scale,
        output,
        segments,
    )
    return output.cpu()


def through_backend(
    step: Step, mask: RowMask | None, *, causal: bool = True, name: str = "TRITON_ATTN"
) -> torch.Tensor:  # [T, H, D]
    """The step through our backend over one of vLLM's: cache update, metadata, forward.

    causal: the metadata's, for requests without a mask.
    """
    heads, size, groups = step.query.shape[1], step.query.shape[2], step.keys[0].shape[1]
    backend = BlockMaskBackend.over(_backend(name))
    one = torch.ones(1, device=DEVICE)
    layer = SimpleNamespace(_q_scale=one, _k_scale=one, _v_scale=one)
    cache = torch.zeros(step.pages, step.page_size, groups, 2 * size, dtype=step.dtype, device=DEVICE).transpose(1, 2)
    metadata = _metadata(name, step, causal)
    attach({"layer": metadata}, mask)
    output = torch.full_like(step.query, float("nan"), device=DEVICE)
    with pytest.MonkeyPatch.context() as patches:
        if DEVICE == "cpu":  # TRITON_ATTN asks which dtypes the device has
            patches.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
            flash.install(patches)
        impl = backend.get_impl_cls()(heads, size, step.scale, groups, None, None, "auto")
        for request, (key, value) in enumerate(zip(step.keys, step.values, strict=True)):
            impl.do_kv_cache_update(layer, key.to(DEVICE), value.to(DEVICE), cache, step.slots(request).to(DEVICE))
        impl.forward(layer, step.query.to(DEVICE), output, output, cache, metadata, output)
    return output.cpu()


def _backend(name: str) -> Any:
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    return AttentionBackendEnum[name].get_class()


def _metadata(name: str, step: Step, causal: bool) -> Any:
    """What the backend's builder would return for the step."""
    from vllm.v1.attention.backends.flash_attn import FlashAttentionMetadata
    from vllm.v1.attention.backends.triton_attn import TritonAttentionMetadata

    common = {
        "num_actual_tokens": sum(step.lengths),
        "max_query_len": max(step.lengths),
        "query_start_loc": step.starts().to(DEVICE),
        "max_seq_len": int(step.totals().max()),
        "seq_lens": step.totals().to(DEVICE),
        "block_table": step.table.to(DEVICE),
        "slot_mapping": torch.zeros(0, device=DEVICE),
        "causal": causal,
    }
    if name == "FLASH_ATTN":
        return FlashAttentionMetadata(**common)
    segments = {"seq_threshold_3D": 0, "num_par_softmax_segments": 0}
    results = dict.fromkeys(("softmax_segm_output", "softmax_segm_max", "softmax_segm_expsum"))
    return TritonAttentionMetadata(**common, **segments, **results)


def fixed_step(
    masks: list[Mask | None],
    prefixes: list[int],
    lengths: list[int],
    width: int = 4,
    *,
    dtype: torch.dtype = torch.float32,
    heads: tuple[int, int] = (4, 2),  # H, G
    size: int = 32,
) -> Step:
    """A step with pages of 16, in order."""
    generator = torch.Generator().manual_seed(1)
    totals = [prefix + length for prefix, length in zip(prefixes, lengths, strict=True)]
    query = torch.randn(sum(lengths), heads[0], size, generator=generator).to(dtype)
    kv = torch.randn(2, sum(totals), heads[1], size, generator=generator).to(dtype)
    table = torch.arange(len(lengths) * width).view(len(lengths), width).int()
    keys, values = (list(one.split(totals)) for one in kv)
    return Step(prefixes, masks, lengths, 16, dtype, query, keys, values, table)
