"""Our Triton kernels against their references, and vLLM's attention in the ways that we rely on.

The kernels of drafting are compared with their native twins, those of masks with dense attention in fp32: the cases and
the comparisons are the tests'. On a CPU the kernels run in Triton's interpreter, and FlashAttention is dense attention
behind vLLM's own call of it.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from bench.gpu_check.record import DIFF, FAIL, OK, Check, Finding, Setting, Subject

SEEDS = range(8)
TF32 = 5e-3  # largest error of fp32 attention whose products are rounded to TF32
BOUNDS = {"float32": 2e-5, "bfloat16": 2e-2}
INTERPRETED = ((4, 2), 32)  # heads, key heads and head size on a CPU, where the interpreter takes its time
RELEASED = ((32, 8), 128)


@contextlib.contextmanager
def ready(setting: Setting) -> Iterator[Setting]:
    """The plugin, and Triton's interpreter repaired where there is no GPU."""
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    yield setting


def drafting(name: str, sizes: list[tuple[Any, ...]], setting: Setting) -> Finding:
    """One kernel of drafting against its twin: the same memory, to the last element."""
    from tests.triton_cpu import cases

    seeds = SEEDS[:2] if setting.quick else SEEDS
    for seed in seeds:
        for size in sizes:
            try:
                getattr(cases, name)(seed, *size).check()
            except AssertionError as error:
                return Finding(FAIL, f"seed {seed}, sizes {size}: {error}")
    return Finding(OK, f"{len(seeds) * len(sizes)} launches write what the twin writes")


def masked(dtype: str, segments: int, setting: Setting) -> Finding:
    """Our attention with row masks: a tree, a block and a causal request in a batch, after prefixes over page edges."""
    from attention_backend.masks import Block, Causal
    from tests.attention_backend.launches import launch

    rows = 8 if setting.quick else 32
    step = step_of(dtype, setting, [tree(rows), Block(rows), Causal(5), None], [100, 31, 0, 16])
    return compared(launch(step, segments), step, dtype, step.plain_rows())


def tree(rows: int) -> Any:
    """A tree in which every row has up to two children."""
    from attention_backend.masks import Tree

    return Tree((-1, *(row // 2 for row in range(rows - 1))))


def mixed(dtype: str, backend: str, setting: Setting) -> Finding:
    """A batch in which one request has a mask: vLLM's kernel for the others, ours for it."""
    from attention_backend.rows import RowMask
    from tests.attention_backend.launches import DEVICE, through_backend

    step = step_of(dtype, setting, [tree(8), None], [20, 33])
    mask = RowMask(step.mask.bits.to(DEVICE), step.mask.requests)
    return compared(through_backend(step, mask, name=backend), step, dtype, of=kernel_of(backend, setting))


def ahead(dtype: str, backend: str, setting: Setting) -> Finding:
    """vLLM's attention with `causal=False` over the paged cache, as draft passes use it."""
    from attention_backend.masks import Block
    from tests.attention_backend.launches import through_backend

    step = step_of(dtype, setting, [Block(8), Block(8), Block(5)], [100, 0, 15])
    return compared(
        through_backend(step, None, causal=False, name=backend), step, dtype, of=kernel_of(backend, setting)
    )


def step_of(dtype: str, setting: Setting, masks: list[Any], prefixes: list[int]) -> Any:
    """A step of these requests; one without a mask has three rows."""
    import torch

    from tests.attention_backend.launches import fixed_step

    lengths = [3 if mask is None else mask.length for mask in masks]
    heads, size = RELEASED if setting.gpu else INTERPRETED
    return fixed_step(masks, prefixes, lengths, 10, dtype=getattr(torch, dtype), heads=heads, size=size)


def kernel_of(backend: str, setting: Setting) -> str:
    """Whose kernel runs, for the finding, if the backend's name does not say it."""
    if backend != "FLASH_ATTN":
        return ""
    if not setting.gpu:
        return "; its kernel replaced by dense attention"
    from vllm.v1.attention.backends.fa_utils import get_flash_attn_version

    return f"; FlashAttention {get_flash_attn_version(head_size=RELEASED[1])}"


def compared(output: Any, step: Any, dtype: str, skip: Any = None, of: str = "") -> Finding:
    """The largest error against dense attention. skip: rows that are not written, and must not be."""
    if skip is not None:
        if not output[skip].isnan().all():
            return Finding(FAIL, "rows of a request without a mask were written")
        output[skip] = step.expected()[skip].to(output.dtype)
    expected = step.expected()
    relative = (output.float() - expected).abs() / (1 + expected.abs())
    error = relative.nan_to_num(nan=float("inf")).max().item()
    text = f"largest error {error:.1e}, allowed {BOUNDS[dtype]:.0e}{of}"
    if error <= BOUNDS[dtype]:
        return Finding(OK, text, error)
    if dtype == "float32" and error <= TF32:
        return Finding(DIFF, f"{text}: as with products rounded to TF32", error)
    return Finding(FAIL, text, error)


DRAFTING: dict[str, tuple[str, list[tuple[Any, ...]]]] = {  # the case's name -> what the kernel does, sizes
    "lay_blocks": ("blocks start at the right token and position", [(4, 3, 8, True), (3, 0, 32, False)]),
    "fill_pass": ("a draft pass writes KV to its own lookahead slots only", [(4, 3, 9, 8, True), (3, 2, 0, 32, False)]),
    "grow_trees": ("trees hold the likeliest paths", [(3, 40, 8, False), (2, 9, 32, True)]),
    "mask_rows": ("a tree's rows see their ancestors only", [(3, 40), (2, 70)]),
    "walk_trees": ("the accepted path follows the samples", [(3, 2, 24), (2, 0, 70)]),
}


def checks() -> Iterator[Check]:
    """Without fp32 for FlashAttention, which has none."""

    def check(name: str, why: str, run: Callable[[Setting], Finding]) -> Check:
        return Check(name, why, run, 120)

    for name, (why, sizes) in DRAFTING.items():
        yield check(f"{name} = its twin", why, partial(drafting, name, sizes))
    for dtype in ("float32", "bfloat16"):
        for segments in (1, 8):
            why = "trees are verified with the right mask"
            yield check(f"masks {dtype}, keys in {segments} parts", why, partial(masked, dtype, segments))
    for backend, dtype in (("FLASH_ATTN", "bfloat16"), ("TRITON_ATTN", "bfloat16"), ("TRITON_ATTN", "float32")):
        why = "a draft row sees its whole block"
        yield check(f"{backend} {dtype} looks ahead", why, partial(ahead, dtype, backend))
        why = "requests with and without a tree share a batch"
        yield check(f"{backend} {dtype} beside masks", why, partial(mixed, dtype, backend))


def subject() -> Subject:
    return Subject("kernels", "kernels", ready, tuple(checks()))
