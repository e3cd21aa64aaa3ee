"""Twins of the kernels that change or read logits write the same memory as vLLM's kernels in the interpreter."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.triton_cpu.harness import (
    CASES,
    SEEDS,
    assert_equal,
    floats,
    generator,
    ints,
    slots,
    starts,
    strided,
)

SAMPLE = "vllm.v1.worker.gpu.sample"
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
ROUNDING = 2e-6  # absolute: float32 arithmetic on logits of order one


def local_positions(g: torch.Generator, rows: int) -> torch.Tensor:
    """[N] index of each logit row within its request: 0, 1, …, with a new request starting at random."""
    places = [0]
    for new in (torch.rand(rows - 1, generator=g) < 0.4).tolist():
        places.append(0 if new else places[-1] + 1)
    return torch.tensor(places, dtype=torch.int32)


@CASES
@given(SEEDS, st.integers(1, 4), st.integers(1, 70))
def test_penalties(seed: int, rows: int, vocabulary: int) -> None:
    g = generator(seed)
    requests, words = 3, -(-vocabulary // 32)
    logits = strided(g, floats(g, rows, vocabulary), 2)
    logits[torch.rand(logits.shape, generator=g) < 0.1] = -torch.inf
    assert_equal(
        f"{SAMPLE}.penalties",
        "_penalties_kernel",
        (rows, -(-vocabulary // 32)),
        logits_ptr=logits,
        logits_stride=logits.stride(0),
        expanded_idx_mapping_ptr=ints(g, 0, requests - 1, rows),
        token_ids_ptr=ints(g, 0, vocabulary - 1, rows),
        expanded_local_pos_ptr=local_positions(g, rows),
        repetition_penalty_ptr=torch.tensor([1.0, 1.3, 0.8]),
        frequency_penalty_ptr=torch.tensor([0.0, 0.5, 0.0]),
        presence_penalty_ptr=torch.tensor([0.0, 0.0, -0.7]),
        prompt_bin_mask_ptr=ints(g, -(2**31), 2**31 - 1, requests, words),
        prompt_bin_mask_stride=words,
        output_bin_counts_ptr=ints(g, 0, 2, requests, vocabulary),
        output_bin_counts_stride=vocabulary,
        vocab_size=vocabulary,
        BLOCK_SIZE=32,
        atol=ROUNDING,
    )


@CASES
@given(SEEDS, st.integers(1, 2), st.integers(1, 70))
def test_count_tokens(seed: int, requests: int, vocabulary: int) -> None:
    g = generator(seed)
    most, length, words = requests + 1, 20, -(-vocabulary // 32)
    prompt = ints(g, 0, length, most)
    prefill = torch.minimum(prompt + ints(g, 0, 6, most), torch.tensor(length)).to(torch.int32)
    assert_equal(
        f"{SAMPLE}.penalties",
        "_bincount_kernel",
        (requests, 3),
        expanded_idx_mapping_ptr=slots(g, requests, most, torch.int64),
        all_token_ids_ptr=ints(g, 0, vocabulary - 1, most, length),
        all_token_ids_stride=length,
        prompt_len_ptr=prompt,
        prefill_len_ptr=prefill,
        prompt_bin_mask_ptr=torch.zeros(most, words, dtype=torch.int32),
        prompt_bin_mask_stride=words,
        output_bin_counts_ptr=torch.zeros(most, vocabulary, dtype=torch.int32),
        output_bin_counts_stride=vocabulary,
        BLOCK_SIZE=8,
    )


@CASES
@given(SEEDS, st.integers(1, 4), st.integers(8, 40), st.booleans())
def test_bias(seed: int, rows: int, vocabulary: int, check: bool) -> None:
    g = generator(seed)
    requests, most = 3, 6
    logits = strided(g, floats(g, rows, vocabulary), 2)
    if check:  # leave few tokens per row, so that forbidding stop tokens can empty it
        logits[torch.rand(logits.shape, generator=g) < 0.8] = -torch.inf
    ids = [torch.stack([slots(g, most, vocabulary) for _ in range(requests)]) for _ in range(3)]
    assert_equal(
        f"{SAMPLE}.logit_bias",
        "_bias_kernel",
        (rows,),
        logits_ptr=logits,
        logits_stride=logits.stride(0),
        vocab_size=vocabulary,
        expanded_idx_mapping_ptr=ints(g, 0, requests - 1, rows),
        num_allowed_token_ids_ptr=ints(g, -3, most, requests).clamp_(min=0),
        allowed_token_ids_ptr=ids[0],
        allowed_token_ids_stride=most,
        num_logit_bias_ptr=ints(g, 0, most, requests),
        bias_token_ids_ptr=ids[1],
        bias_token_ids_stride=most,
        bias_ptr=floats(g, requests, most),
        bias_stride=most,
        pos_ptr=ints(g, 0, 9, rows, dtype=torch.int64),
        min_lens_ptr=ints(g, 0, 9, requests),
        num_stop_token_ids_ptr=ints(g, 0, most, requests),
        restore_when_all_masked_ptr=ints(g, 0, 1, requests),
        stop_token_ids_ptr=ids[2],
        stop_token_ids_stride=most,
        BLOCK_SIZE=8,
        LOGITS_BLOCK_SIZE=16,
        CHECK_ALL_MASKED_ROWS=check,
    )


@CASES
@given(SEEDS, st.integers(1, 3), st.integers(1, 3))
def test_bad_words(seed: int, rows: int, vocabulary: int) -> None:
    """A tiny vocabulary, so that words of several tokens occur."""
    g = generator(seed)
    requests, words, length = 3, 2, 8
    sizes = ints(g, 1, 3, requests, words)
    prompt = ints(g, 0, 4, requests)
    assert_equal(
        f"{SAMPLE}.bad_words",
        "_bad_words_kernel",
        (rows, words),
        logits_ptr=floats(g, rows, vocabulary),
        logits_stride=vocabulary,
        expanded_idx_mapping_ptr=ints(g, 0, requests - 1, rows),
        bad_word_token_ids_ptr=ints(g, 0, vocabulary - 1, requests, 9),
        bad_word_token_ids_stride=9,
        bad_word_offsets_ptr=torch.stack([starts(row) for row in sizes]),
        bad_word_offsets_stride=words + 1,
        num_bad_words_ptr=ints(g, 0, words, requests),
        all_token_ids_ptr=ints(g, 0, vocabulary - 1, requests, length),
        all_token_ids_stride=length,
        prompt_len_ptr=prompt,
        total_len_ptr=(prompt + ints(g, 0, 4, requests)).to(torch.int32),
        input_ids_ptr=ints(g, 0, vocabulary - 1, rows),
        expanded_local_pos_ptr=local_positions(g, rows),
    )


@CASES
@given(SEEDS, st.integers(1, 2), st.integers(1, 70), DTYPES, st.integers(0, 1))
def test_grammar_bitmask(seed: int, requests: int, vocabulary: int, dtype: torch.dtype, spare: int) -> None:
    g = generator(seed)
    rows = starts(ints(g, 1, 2, requests))
    words, stride = -(-vocabulary // 32) + spare, 4
    masks = [r * stride + place for r in range(requests) for place in range(3) if torch.rand(1, generator=g) < 0.7]
    logits = strided(g, floats(g, int(rows[-1]), vocabulary, dtype=dtype), 2)
    assert_equal(
        "vllm.v1.worker.gpu.structured_outputs",
        "_apply_grammar_bitmask_kernel",
        (len(masks), -(-vocabulary // 64)),
        logits_ptr=logits,
        logits_stride=logits.stride(0),
        logits_indices_ptr=torch.tensor(masks + [0], dtype=torch.int32),
        cu_num_logits_ptr=rows,
        bitmask_ptr=ints(g, -(2**31), 2**31 - 1, len(masks) + 1, words),
        bitmask_stride=words,
        vocab_size=vocabulary,
        MASK_STRIDE=stride,
        BLOCK_SIZE=64,
    )


@CASES
@given(SEEDS, st.integers(1, 4), st.integers(1, 40), DTYPES)
def test_count_nans(seed: int, rows: int, vocabulary: int, dtype: torch.dtype) -> None:
    g = generator(seed)
    logits = strided(g, floats(g, rows, vocabulary, dtype=dtype), 2)
    logits[torch.rand(logits.shape, generator=g) < 0.2] = torch.nan
    assert_equal(
        "vllm.v1.worker.gpu.metrics.logits",
        "_num_nans_kernel",
        (rows,),
        logits_ptr=logits,
        logits_stride=logits.stride(0),
        num_nans_ptr=torch.full((rows,), -7, dtype=torch.int32),
        vocab_size=vocabulary,
        BLOCK_SIZE=16,
    )


@CASES
@given(SEEDS, st.integers(1, 4), st.integers(1, 40), st.integers(1, 6), DTYPES)
def test_log_softmax_at(seed: int, rows: int, vocabulary: int, tokens: int, dtype: torch.dtype) -> None:
    g = generator(seed)
    logits = strided(g, floats(g, rows, vocabulary, dtype=dtype), 2)
    assert_equal(
        f"{SAMPLE}.logprob",
        "_topk_log_softmax_kernel",
        (rows,),
        output_ptr=torch.full((rows, tokens), -7.0),
        logits_ptr=logits,
        logits_stride=logits.stride(0),
        topk_ids_ptr=ints(g, 0, vocabulary - 1, rows, tokens, dtype=torch.int64),
        topk_ids_stride=tokens,
        topk=tokens,
        vocab_size=vocabulary,
        BLOCK_SIZE=16,
        TOPK_BLOCK_SIZE=4,
        atol=ROUNDING,
    )


@CASES
@given(SEEDS, st.integers(1, 4), st.integers(1, 40))
def test_ranks(seed: int, rows: int, vocabulary: int) -> None:
    """In float32: the interpreter compares the bits of bfloat16."""
    g = generator(seed)
    logits = strided(g, floats(g, rows, vocabulary).mul_(2).round_(), 2)
    assert_equal(
        f"{SAMPLE}.logprob",
        "_ranks_kernel",
        (rows,),
        output_ptr=torch.full((rows,), -7),
        logits_ptr=logits,
        logits_stride=logits.stride(0),
        token_ids_ptr=ints(g, 0, vocabulary - 1, rows, dtype=torch.int64),
        vocab_size=vocabulary,
        BLOCK_SIZE=16,
    )


@CASES
@given(SEEDS, st.integers(1, 4), st.integers(0, 5))
def test_fill_token_ids(seed: int, rows: int, top: int) -> None:
    g = generator(seed)
    requests, most, columns = 3, 6, 9
    assert_equal(
        f"{SAMPLE}.logprob",
        "_fill_logprob_token_ids_kernel",
        (rows,),
        out_token_ids_ptr=torch.zeros(rows, columns, dtype=torch.int64),
        out_token_ids_stride=columns,
        out_valid_mask_ptr=torch.zeros(rows, columns, dtype=torch.bool),
        out_valid_mask_stride=columns,
        sampled_token_ids_ptr=ints(g, 0, 99, rows, dtype=torch.int64),
        topk_indices_ptr=ints(g, 0, 99, rows, max(top, 1)),
        topk_indices_stride=max(top, 1),
        expanded_idx_mapping_ptr=ints(g, 0, requests - 1, rows),
        num_per_req_token_ids_ptr=ints(g, -3, most, requests).clamp_(min=0),
        per_req_token_ids_ptr=ints(g, 0, 99, requests, most),
        per_req_token_ids_stride=most,
        NUM_TOPK=top,
        PADDED_COLS=8,
    )


@CASES
@given(SEEDS, st.integers(1, 4))
def test_prompt_token_ids(seed: int, requests: int) -> None:
    g = generator(seed)
    most = requests + 1
    start = starts(ints(g, 0, 7, requests))
    assert_equal(
        f"{SAMPLE}.prompt_logprob",
        "_prompt_logprobs_token_ids_kernel",
        (requests,),
        prompt_logprobs_token_ids_ptr=torch.full((int(start[-1]) + 2,), -7),
        query_start_loc_ptr=start,
        idx_mapping_ptr=slots(g, requests, most),
        num_computed_tokens_ptr=ints(g, 0, 9, most),
        all_token_ids_ptr=ints(g, 0, 99, most, 20),
        all_token_ids_stride=20,
        BLOCK_SIZE=4,
    )


@CASES
@given(SEEDS, st.integers(1, 3), st.integers(1, 40), st.integers(1, 3))
def test_compact_support(seed: int, requests: int, vocabulary: int, places: int) -> None:
    """In float32: the interpreter compares the bits of bfloat16."""
    g = generator(seed)
    rows = starts(ints(g, places, places + 1, requests))
    logits = floats(g, int(rows[-1]), vocabulary)
    logits[torch.rand(logits.shape, generator=g) < 0.5] = -torch.inf
    kept = int(ints(g, 1, vocabulary, 1))
    assert_equal(
        f"{SAMPLE}.output",
        "_compact_sampling_mask_kernel",
        (requests * places,),
        logits_ptr=logits,
        logits_row_stride=vocabulary,
        logits_col_stride=1,
        cu_num_logits_ptr=rows,
        num_sampled_tokens_ptr=ints(g, 0, places, requests),
        token_ids_ptr=torch.full((requests * places, kept), -7, dtype=torch.int32),
        token_ids_row_stride=kept,
        packed_mask_ptr=torch.zeros(requests * places, -(-vocabulary // 8), dtype=torch.uint8),
        packed_mask_row_stride=-(-vocabulary // 8),
        counts_ptr=torch.full((requests * places,), -7, dtype=torch.int32),
        vocab_size=vocabulary,
        max_num_kept=kept,
        ROWS_PER_REQUEST=places,
        BLOCK_SIZE=16,
    )


@CASES
@given(SEEDS, st.integers(1, 3), st.integers(1, 2), st.integers(1, 2))
def test_update_marker_cache(seed: int, requests: int, start: int, end: int) -> None:
    """A vocabulary of three tokens, so that markers occur; continued scans, first scans and scans after a reset."""
    g = generator(seed)
    most, length = requests + 1, 14
    cold = torch.rand(most, generator=g) < 0.5
    scanned = ints(g, 0, length, most)
    assert_equal(
        f"{SAMPLE}.thinking_budget",
        "_update_committed_marker_cache_kernel",
        (requests,),
        req_ids_ptr=slots(g, requests, most, torch.int64),
        thinking_token_budget_ptr=ints(g, -1, 4, most),
        all_token_ids_ptr=ints(g, 0, 2, most, length + 2),
        all_token_ids_stride=length + 2,
        total_len_ptr=ints(g, 0, length, most),
        cached_last_start_ptr=ints(g, -1, 5, most).masked_fill_(cold, -1),
        cached_last_end_ptr=ints(g, -1, 5, most).masked_fill_(cold, -1),
        cached_scan_pos_ptr=scanned.masked_fill_(cold, 0),
        reasoning_start_token_ids_ptr=ints(g, 0, 2, start),
        natural_reasoning_end_token_ids_ptr=ints(g, 0, 2, end),
        START_LEN=start,
        NATURAL_END_LEN=end,
        MAX_LEN=max(start, end),
        BLOCK=4,
    )


@CASES
@given(SEEDS, st.integers(1, 4), st.integers(1, 2), st.integers(1, 2), st.integers(1, 3))
def test_apply_budget(seed: int, rows: int, start: int, natural_end: int, end: int) -> None:
    g = generator(seed)
    requests, length, vocabulary = 3, 10, 4
    assert_equal(
        f"{SAMPLE}.thinking_budget",
        "_thinking_budget_kernel",
        (rows,),
        logits_ptr=floats(g, rows, vocabulary),
        logits_stride=vocabulary,
        expanded_idx_mapping_ptr=ints(g, 0, requests - 1, rows),
        thinking_token_budget_ptr=ints(g, -1, 4, requests),
        all_token_ids_ptr=ints(g, 0, 2, requests, length),
        all_token_ids_stride=length,
        total_len_ptr=ints(g, 1, length, requests),
        input_ids_ptr=ints(g, 0, 2, rows),
        expanded_local_pos_ptr=local_positions(g, rows),
        cached_last_start_ptr=ints(g, -1, 5, requests),
        cached_last_end_ptr=ints(g, -1, 3, requests),
        reasoning_start_token_ids_ptr=ints(g, 0, 2, start),
        natural_reasoning_end_token_ids_ptr=ints(g, 0, 2, natural_end),
        reasoning_end_token_ids_ptr=ints(g, 0, 2, end),
        START_LEN=start,
        NATURAL_END_LEN=natural_end,
        END_LEN=end,
    )
