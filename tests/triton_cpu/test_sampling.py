"""Twins of the sampling kernels give the same logits, and the same samples per seed, as vLLM's in the interpreter."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.triton_cpu.harness import CASES, SEEDS, assert_equal, floats, generator, ints, native_of, strided

GUMBEL = "vllm.v1.worker.gpu.sample.gumbel"
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
LOGIT_ROUNDING = 2e-6  # absolute: float32 arithmetic on logits of order one


def some_forbidden(g: torch.Generator, logits: torch.Tensor) -> torch.Tensor:
    """The logits with a tenth of them set to -inf."""
    return logits.masked_fill(torch.rand(logits.shape, generator=g) < 0.1, -torch.inf)


def temperatures(g: torch.Generator, requests: int) -> torch.Tensor:
    """[M] temperatures, including 0 and 1."""
    choices = torch.tensor([0.0, 1.0, 0.5, 1.7, 0.01])
    return choices[ints(g, 0, 4, requests, dtype=torch.int64)]


@CASES
@given(SEEDS, st.integers(1, 3), st.integers(1, 30), DTYPES, st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_gumbel_sample(
    seed: int, rows: int, vocabulary: int, dtype: torch.dtype, drafting: bool, scale: bool, fp64: bool, cached: bool
) -> None:
    g = generator(seed)
    requests, columns, block = 3, 2, 16
    blocks = -(-vocabulary // block)
    logits = strided(g, some_forbidden(g, floats(g, rows, vocabulary, dtype=dtype)), 3)
    mapping = ints(g, 0, requests - 1, rows)
    if cached:  # distinct cache rows, so that the order of writes doesn't matter
        mapping = torch.arange(rows, dtype=torch.int32) % requests
        rows_used = min(rows, requests)
        mapping, logits = mapping[:rows_used], logits[:rows_used]
        rows = rows_used
        mapping[torch.rand(rows, generator=g) < 0.2] = -1
    assert_equal(
        GUMBEL,
        "_gumbel_sample_kernel",
        (rows, blocks),
        local_argmax_ptr=torch.full((rows, blocks), -7),
        local_argmax_stride=blocks,
        local_max_ptr=torch.full((rows, blocks), -7.0, dtype=torch.float64 if fp64 else torch.float32),
        local_max_stride=blocks,
        logits_cache_ptr=floats(g, requests, columns, vocabulary, dtype=dtype) if cached else None,
        logits_cache_stride_0=columns * vocabulary,
        logits_cache_stride_1=vocabulary,
        logits_cache_col_ptr=ints(g, 0, columns - 1, rows, dtype=torch.int64) if cached else None,
        logits_cache_source_ptr=floats(g, rows, vocabulary, dtype=dtype) if cached else None,
        logits_cache_source_stride=vocabulary,
        logits_ptr=logits,
        logits_stride=logits.stride(0),
        expanded_idx_mapping_ptr=mapping,
        seeds_ptr=ints(g, -(2**62), 2**62, requests, dtype=torch.int64),
        pos_ptr=ints(g, 0, 4000, rows, dtype=torch.int64),
        temp_ptr=temperatures(g, requests),
        vocab_size=vocabulary,
        BLOCK_SIZE=block,
        IS_DRAFTING=drafting,
        APPLY_TEMPERATURE=scale,
        USE_FP64=fp64,
        PER_TOKEN_COL=cached,
        atol=LOGIT_ROUNDING,
    )


def test_same_samples_over_a_large_vocabulary() -> None:
    """A hundred thousand draws per row, enough to expose a wrong bit in the hash."""
    g = generator(0)
    vocabulary, rows = 100_000, 3
    blocks = -(-vocabulary // 1024)
    assert_equal(
        GUMBEL,
        "_gumbel_sample_kernel",
        (rows, blocks),
        local_argmax_ptr=torch.empty(rows, blocks, dtype=torch.int64),
        local_argmax_stride=blocks,
        local_max_ptr=torch.empty(rows, blocks),
        local_max_stride=blocks,
        logits_cache_ptr=None,
        logits_cache_stride_0=0,
        logits_cache_stride_1=0,
        logits_cache_col_ptr=None,
        logits_cache_source_ptr=None,
        logits_cache_source_stride=0,
        logits_ptr=floats(g, rows, vocabulary, scale=0.1),
        logits_stride=vocabulary,
        expanded_idx_mapping_ptr=torch.arange(rows, dtype=torch.int32),
        seeds_ptr=torch.tensor([0, -1, 2**40 + 5]),
        pos_ptr=torch.tensor([0, 2**33, 7]),
        temp_ptr=torch.ones(rows),
        vocab_size=vocabulary,
        BLOCK_SIZE=1024,
        IS_DRAFTING=False,
        APPLY_TEMPERATURE=True,
        USE_FP64=False,
        PER_TOKEN_COL=False,
        atol=LOGIT_ROUNDING,
    )


@CASES
@given(SEEDS, st.integers(1, 4), st.integers(1, 40))
def test_temperature(seed: int, rows: int, vocabulary: int) -> None:
    g = generator(seed)
    logits = strided(g, some_forbidden(g, floats(g, rows, vocabulary)), 2)
    assert_equal(
        GUMBEL,
        "_temperature_kernel",
        (rows, -(-vocabulary // 16)),
        logits_ptr=logits,
        logits_stride=logits.stride(0),
        expanded_idx_mapping_ptr=ints(g, 0, 2, rows),
        temperature_ptr=temperatures(g, 3),
        vocab_size=vocabulary,
        BLOCK_SIZE=16,
    )


@CASES
@given(SEEDS, st.integers(1, 4), st.integers(1, 40), DTYPES)
def test_min_p(seed: int, rows: int, vocabulary: int, dtype: torch.dtype) -> None:
    g = generator(seed)
    logits = strided(g, some_forbidden(g, floats(g, rows, vocabulary, dtype=dtype)), 2)
    assert_equal(
        "vllm.v1.worker.gpu.sample.min_p",
        "_min_p_kernel",
        (rows,),
        logits_ptr=logits,
        logits_stride=logits.stride(0),
        expanded_idx_mapping_ptr=ints(g, 0, 2, rows),
        min_p_ptr=torch.tensor([0.0, 0.05, 0.6]),
        vocab_size=vocabulary,
        BLOCK_SIZE=16,
    )


def launch_top_k_top_p(logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor | None) -> None:
    from vllm.v1.sample.ops.topk_topp_triton import _NORMAL_CDF_TO_SIGMA_TABLE, _PERCENTILE_TO_STD_TABLE

    rows, vocabulary = logits.shape
    programs = min(2, rows)
    assert_equal(
        "vllm.v1.sample.ops.topk_topp_triton",
        "_topk_topp_kernel",
        (programs,),
        LOGITS=logits,
        LOGITS_STRIDE_0=logits.stride(0),
        BUFFER=torch.zeros(programs, vocabulary),
        PERCENTILE_TO_STD_TABLE=torch.tensor(_PERCENTILE_TO_STD_TABLE),
        NORMAL_CDF_TO_SIGMA_TABLE=torch.tensor(_NORMAL_CDF_TO_SIGMA_TABLE),
        K=logits if k is None else k,
        P=logits if p is None else p,
        BATCH_SIZE=rows,
        VOCAB_SIZE=vocabulary,
        MASK_VALUE=-float("inf"),
        BLOCK_SIZE=64,
        BLOCK_SIZE_TRUNC=32,
        TOPK_ENABLED=k is not None,
        TOPP_ENABLED=p is not None,
        SPLIT_COVERS_PONLY=False,
        ignore=("BUFFER", "K", "P"),
    )


@CASES
@given(SEEDS, st.integers(1, 2), st.integers(2, 80), st.sampled_from(["k", "p", "kp"]), st.booleans(), st.booleans())
def test_top_k_top_p(seed: int, rows: int, vocabulary: int, which: str, flat: bool, masked: bool) -> None:
    g = generator(seed)
    logits = strided(g, floats(g, rows, vocabulary, scale=0.3 if flat else 3.0), 2)
    if flat and which == "k":  # equal logits: the first ones are kept
        logits.mul_(4).round_().div_(2)
    if masked:
        logits[:, :-1] = some_forbidden(g, logits[:, :-1])
    k = ints(g, 1, vocabulary, rows)
    p = torch.rand(rows, generator=g).clamp_(0.02, 0.999)
    p[torch.rand(rows, generator=g) < 0.1] = 1.0
    launch_top_k_top_p(logits, k if "k" in which else None, p if "p" in which else None)


@pytest.mark.parametrize("k", [1, 5, 40])
def test_top_k_leaves_k_tokens(k: int) -> None:
    """Checked against the definition of top-k, not against the kernel."""
    logits = floats(generator(k), 4, 1000)
    native = native_of("vllm.v1.sample.ops.topk_topp_triton", "_topk_topp_kernel")
    from vllm.v1.sample.ops.topk_topp_triton import _NORMAL_CDF_TO_SIGMA_TABLE, _PERCENTILE_TO_STD_TABLE

    cut = logits.clone()
    tables = torch.tensor(_PERCENTILE_TO_STD_TABLE), torch.tensor(_NORMAL_CDF_TO_SIGMA_TABLE)
    ks = torch.full((4,), k, dtype=torch.int32)
    native.launch(
        (1,), cut, 1000, torch.empty(1, 1000), *tables, ks, cut, 4, 1000, -float("inf"), 256, 128, True, False, False
    )
    kept = logits.topk(k).indices
    assert torch.equal(cut.isfinite().nonzero()[:, 1].view(4, k), kept.sort().values)
