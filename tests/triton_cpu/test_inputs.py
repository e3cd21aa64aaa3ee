"""Twins of the kernels around a target forward write the same memory as vLLM's kernels in the interpreter."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.triton_cpu.harness import CASES, SEEDS, assert_equal, generator, ints, slots, starts

MODULE = "vllm.v1.worker.gpu.input_batch"
INDEX = st.sampled_from([torch.int32, torch.int64])


@CASES
@given(SEEDS, st.integers(1, 4), st.integers(1, 3), INDEX)
def test_prepare_prefill_inputs(seed: int, requests: int, lookahead: int, index: torch.dtype) -> None:
    g = generator(seed)
    most = requests + 1
    start = starts(ints(g, 0, 6, requests))
    assert_equal(
        MODULE,
        "_prepare_prefill_inputs_kernel",
        (requests,),
        input_ids_ptr=ints(g, 0, 9, int(start[-1]) + 2),
        next_prefill_tokens_ptr=ints(g, 0, 9, lookahead, most),
        next_prefill_tokens_stride=most,
        num_lookahead=lookahead,
        idx_mapping_ptr=slots(g, requests, most, index),
        query_start_loc_ptr=start,
        all_token_ids_ptr=ints(g, 10, 99, most, 24),
        all_token_ids_stride=24,
        prefill_lens_ptr=ints(g, 0, 14, most),
        num_computed_tokens_ptr=ints(g, 0, 12, most),
        BLOCK_SIZE=4,
        LOOKAHEAD_BLOCK=4,
    )


@CASES
@given(SEEDS, st.integers(0, 5), INDEX)
def test_prepare_pos_seq_lens(seed: int, requests: int, index: torch.dtype) -> None:
    g = generator(seed)
    most = requests + int(ints(g, 1, 4, 1))
    start = starts(ints(g, 0, 6, requests))
    assert_equal(
        MODULE,
        "_prepare_pos_seq_lens_kernel",
        (requests + 1,),
        pos_ptr=ints(g, 0, 9, int(start[-1]) + 2, dtype=torch.int64),
        seq_lens_ptr=ints(g, 0, 9, most),
        idx_mapping_ptr=slots(g, requests, most, index),
        query_start_loc_ptr=start,
        num_computed_tokens_ptr=ints(g, 0, 99, most),
        max_num_reqs=most,
        BLOCK_SIZE=4,
    )


@CASES
@given(SEEDS, st.integers(1, 4), st.integers(0, 4), st.integers(0, 1), INDEX)
def test_combine_tokens(seed: int, requests: int, drafts: int, bonus: int, index: torch.dtype) -> None:
    g = generator(seed)
    most = requests + 1
    logits = ints(g, max(bonus, 1), drafts + max(bonus, 1), requests)
    start = starts(logits + ints(g, 0, 3, requests))
    rows = starts(logits)
    queries = start[1:] - start[:-1]
    assert_equal(
        MODULE,
        "_combine_sampled_and_draft_tokens_kernel",
        (requests,),
        input_ids_ptr=ints(g, 0, 9, int(start[-1])),
        idx_mapping_ptr=slots(g, requests, most, index),
        last_sampled_tokens_ptr=ints(g, 10, 99, most, dtype=torch.int64),
        query_start_loc_ptr=start,
        seq_lens_ptr=(queries + ints(g, 0, 6, requests)).to(torch.int32),
        prefill_len_ptr=ints(g, 0, 12, most),
        draft_tokens_ptr=ints(g, -1, 99, most, 7, dtype=torch.int64),
        draft_tokens_stride=7,
        cu_num_logits_ptr=rows,
        logits_indices_ptr=ints(g, 0, 9, int(rows[-1]) + 2, dtype=torch.int64),
        BLOCK_SIZE=8,
        NUM_NEW_SAMPLED_TOKENS=bonus,
    )


@CASES
@given(SEEDS, st.integers(1, 5), INDEX)
def test_expand_idx_mapping(seed: int, requests: int, index: torch.dtype) -> None:
    g = generator(seed)
    rows = starts(ints(g, 0, 8, requests))
    total = int(rows[-1]) + 2
    assert_equal(
        MODULE,
        "_expand_idx_mapping_kernel",
        (requests,),
        idx_mapping_ptr=slots(g, requests, requests + 3, index),
        expanded_idx_mapping_ptr=torch.full((total,), -7, dtype=index),
        expanded_local_pos_ptr=torch.full((total,), -7, dtype=torch.int32),
        cu_num_logits_ptr=rows,
        BLOCK_SIZE=8,
    )


@CASES
@given(SEEDS, st.integers(1, 5), INDEX)
def test_count_sampled_and_rejected(seed: int, requests: int, index: torch.dtype) -> None:
    g = generator(seed)
    most = requests + 2
    rows = starts(ints(g, 1, 6, requests))
    assert_equal(
        MODULE,
        "_get_num_sampled_and_rejected_kernel",
        (requests,),
        num_sampled_ptr=ints(g, 0, 6, requests),
        num_rejected_ptr=torch.full((requests,), -7, dtype=torch.int32),
        seq_lens_ptr=ints(g, 0, 12, requests),
        cu_num_logits_ptr=rows,
        idx_mapping_ptr=slots(g, requests, most, index),
        prefill_len_ptr=ints(g, 0, 12, most),
    )


@CASES
@given(SEEDS, st.integers(1, 4), st.booleans(), st.booleans(), INDEX, st.booleans())
def test_post_update(seed: int, requests: int, counts: bool, queries: bool, index: torch.dtype, drafts: bool) -> None:
    g = generator(seed)
    most, vocabulary = requests + 1, 11
    mapping = slots(g, requests, most, index)
    mapping[torch.rand(requests, generator=g) < 0.2] = -1
    assert_equal(
        MODULE,
        "_post_update_kernel",
        (requests,),
        idx_mapping_ptr=mapping,
        num_computed_tokens_ptr=ints(g, 0, 50, most),
        last_sampled_tokens_ptr=ints(g, 0, 9, most, dtype=torch.int64),
        output_bin_counts_ptr=ints(g, 0, 3, most, vocabulary) if counts else None,
        output_bin_counts_stride=vocabulary,
        sampled_tokens_ptr=ints(g, 0, vocabulary - 1, requests, 5, dtype=torch.int64),
        sampled_tokens_stride=5,
        num_sampled_ptr=ints(g, 0, 5, requests),
        num_rejected_ptr=ints(g, 0, 4, requests),
        query_start_loc_ptr=starts(ints(g, 0, 6, requests)) if queries else None,
        all_token_ids_ptr=ints(g, 0, 9, most, 20),
        all_token_ids_stride=20,
        total_len_ptr=ints(g, 0, 14, most),
        draft_tokens_ptr=ints(g, 0, 9, requests, 3, dtype=torch.int64) if drafts else None,  # from vLLM 0.33 on
        draft_tokens_out_ptr=ints(g, 10, 19, most, 3, dtype=torch.int64) if drafts else None,
        num_draft_tokens=3 if drafts else 0,
    )


@CASES
@given(SEEDS, st.integers(1, 5), INDEX)
def test_advance_computed_tokens(seed: int, requests: int, index: torch.dtype) -> None:
    g = generator(seed)
    assert_equal(
        MODULE,
        "_post_update_num_computed_tokens_kernel",
        (requests,),
        idx_mapping_ptr=slots(g, requests, requests + 2, index),
        num_computed_tokens_ptr=ints(g, 0, 50, requests + 2),
        query_start_loc_ptr=starts(ints(g, 0, 6, requests)),
    )
