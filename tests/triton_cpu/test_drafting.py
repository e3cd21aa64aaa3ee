"""Twins of the speculators' input kernels write the same memory as vLLM's kernels in the interpreter."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.triton_cpu.harness import CASES, SEEDS, assert_equal, floats, generator, ints, slots, starts

SPEC = "vllm.v1.worker.gpu.spec_decode"


@CASES
@given(SEEDS, st.integers(1, 4), st.integers(0, 2))
def test_prepare_target_dependent_prefill(seed: int, requests: int, padding: int) -> None:
    g = generator(seed)
    most = requests + padding
    queries = ints(g, 1, 6, requests)
    start = starts(queries)
    tokens = int(start[-1]) + 2
    assert_equal(
        f"{SPEC}.target_dependent_ar.speculator",
        "_prepare_prefill_inputs_kernel",
        (requests,),
        last_token_indices_ptr=torch.full((most,), -7),
        draft_current_step_ptr=torch.full((1,), -7),
        draft_input_ids_ptr=torch.full((tokens,), -7, dtype=torch.int32),
        draft_positions_ptr=torch.full((tokens,), -7),
        draft_query_start_loc_ptr=torch.full((most + 1,), -7, dtype=torch.int32),
        draft_seq_lens_ptr=torch.full((most,), -7, dtype=torch.int32),
        target_input_ids_ptr=ints(g, 0, 99, tokens),
        target_positions_ptr=ints(g, 0, 99, tokens, dtype=torch.int64),
        idx_mapping_ptr=slots(g, requests, most),
        last_sampled_ptr=ints(g, 100, 199, most, dtype=torch.int64),
        next_prefill_tokens_ptr=ints(g, 200, 299, most),
        num_sampled_ptr=ints(g, 0, 2, requests),
        num_rejected_ptr=(torch.rand(requests, generator=g) * queries).int(),
        query_start_loc_ptr=start,
        seq_lens_ptr=ints(g, 0, 99, requests),
        max_num_reqs=most,
        BLOCK_SIZE=4,
    )


@CASES
@given(SEEDS, st.integers(1, 4), st.integers(0, 2), st.booleans())
def test_prepare_decode(seed: int, requests: int, padding: int, advance: bool) -> None:
    g = generator(seed)
    most = requests + padding
    assert_equal(
        f"{SPEC}.target_dependent_ar.speculator",
        "_prepare_decode_inputs_kernel",
        (requests + 1,),
        draft_tokens_ptr=ints(g, 0, 99, requests, 3, dtype=torch.int64),
        draft_tokens_stride=3,
        target_seq_lens_ptr=ints(g, 5, 20, requests),
        num_rejected_ptr=ints(g, 0, 4, requests),
        input_ids_ptr=ints(g, 0, 99, most),
        positions_ptr=ints(g, 0, 20, most, dtype=torch.int64),
        sample_src_positions_ptr=ints(g, 0, 20, most, dtype=torch.int64),
        query_start_loc_ptr=torch.full((most + 1,), -7, dtype=torch.int32),
        seq_lens_ptr=torch.full((most,), -7, dtype=torch.int32),
        max_model_len=16,
        max_num_reqs=most,
        BLOCK_SIZE=4,
        ADVANCE_DRAFT_POSITIONS=advance,
    )


@CASES
@given(SEEDS, st.integers(1, 4), st.sampled_from([torch.float32, torch.bfloat16]), st.booleans())
def test_update_draft_inputs(seed: int, requests: int, dtype: torch.dtype, advance: bool) -> None:
    g = generator(seed)
    drafts, hidden = 3, 6
    assert_equal(
        f"{SPEC}.target_dependent_ar.speculator",
        "_update_draft_inputs_kernel",
        (requests,),
        output_draft_tokens_ptr=ints(g, 0, 99, requests, drafts, dtype=torch.int64),
        output_draft_tokens_stride=drafts,
        next_input_hidden_states_ptr=floats(g, requests, hidden, dtype=dtype),
        next_input_hidden_states_stride=hidden,
        input_ids_ptr=ints(g, 0, 99, requests),
        positions_ptr=ints(g, 0, 20, requests, dtype=torch.int64),
        sample_src_positions_ptr=ints(g, 0, 20, requests, dtype=torch.int64),
        seq_lens_ptr=ints(g, 0, 20, requests),
        draft_tokens_ptr=ints(g, 100, 199, requests, dtype=torch.int64),
        current_draft_step_ptr=ints(g, 0, drafts - 1, 1, dtype=torch.int64),
        hidden_states_ptr=floats(g, requests, hidden, dtype=dtype),
        hidden_states_stride=hidden,
        hidden_size=hidden,
        max_model_len=16,
        num_speculative_steps=drafts,
        BLOCK_SIZE=4,
        ADVANCE_DRAFT_POSITIONS=advance,
    )


@CASES
@given(SEEDS, st.integers(1, 4), st.integers(0, 2))
def test_prepare_standalone_prefill(seed: int, requests: int, padding: int) -> None:
    g = generator(seed)
    most = requests + padding
    queries = ints(g, 1, 6, requests)
    start = starts(queries)
    tokens = int(start[-1])
    assert_equal(
        f"{SPEC}.standalone_ar.speculator",
        "_prepare_prefill_inputs_kernel",
        (requests,),
        target_input_ids_ptr=ints(g, 0, 99, tokens),
        target_positions_ptr=ints(g, 0, 20, tokens, dtype=torch.int64),
        last_sampled_ptr=ints(g, 100, 199, most),
        idx_mapping_ptr=slots(g, requests, most),
        out_input_ids_ptr=torch.full((tokens + most + 2,), -7, dtype=torch.int32),
        out_positions_ptr=torch.full((tokens + most + 2,), -7),
        last_token_indices_ptr=torch.full((most,), -7),
        out_query_start_loc_ptr=torch.full((most + 1,), -7, dtype=torch.int32),
        out_seq_lens_ptr=torch.full((most,), -7, dtype=torch.int32),
        query_start_loc_ptr=start,
        seq_lens_ptr=ints(g, 0, 20, requests),
        num_rejected_ptr=(torch.rand(requests, generator=g) * queries).int(),
        max_num_reqs=most,
        max_model_len=18,
        BLOCK_SIZE=4,
    )


@CASES
@given(SEEDS, st.integers(1, 2), st.integers(0, 2), st.integers(1, 3), st.booleans(), st.integers(1, 2))
def test_prepare_block(seed: int, requests: int, padding: int, drafts: int, from_anchor: bool, ranks: int) -> None:
    g = generator(seed)
    most, block_size, blocks = requests + padding, 4, 6
    per_request = drafts + (0 if from_anchor else 1)
    queries = ints(g, 1, 6, requests)
    start = starts(queries)
    tokens = int(start[-1])
    positions = torch.cat([torch.arange(int(q)) + int(ints(g, 0, 14, 1)) for q in queries])
    full = most * per_request + 3
    assert_equal(
        f"{SPEC}.dflash.speculator",
        "_prepare_dflash_inputs_kernel",
        (requests, 2),
        out_input_ids_ptr=torch.full((full,), -7, dtype=torch.int32),
        out_query_positions_ptr=torch.full((full,), -7),
        out_is_padding_ptr=torch.rand(full, generator=g) < 0.5,  # from vLLM 0.33 on
        out_query_start_loc_ptr=torch.full((most + 1,), -7, dtype=torch.int32),
        out_seq_lens_ptr=torch.full((most,), -7, dtype=torch.int32),
        out_query_slot_mapping_ptr=torch.full((full,), -7),
        out_context_positions_ptr=torch.full((tokens + 1,), -7),
        out_context_slot_mapping_ptr=torch.full((tokens + 1,), -7),
        out_sample_indices_ptr=torch.full((most * drafts,), -7),
        out_sample_pos_ptr=torch.full((most * drafts,), -7),
        out_sample_idx_mapping_ptr=torch.full((most * drafts,), -7, dtype=torch.int32),
        out_temperature_ptr=torch.full((most,), -7.0),
        out_seeds_ptr=torch.full((most,), -7),
        target_positions_ptr=positions,
        target_query_start_loc_ptr=start,
        idx_mapping_ptr=slots(g, requests, most),
        last_sampled_ptr=ints(g, 100, 199, most, dtype=torch.int64),
        next_prefill_tokens_ptr=ints(g, 200, 299, most),
        num_sampled_ptr=ints(g, 0, 2, requests),
        num_rejected_ptr=(torch.rand(requests, generator=g) * queries).int(),
        temperature_ptr=floats(g, most),
        seeds_ptr=ints(g, -99, 99, most, dtype=torch.int64),
        block_table_ptr=ints(g, 0, 5, requests, blocks),
        block_table_stride=blocks,
        parallel_drafting_token_id=555,
        block_size=block_size,
        num_query_per_req=per_request,
        num_speculative_steps=drafts,
        max_num_reqs=most,
        max_num_tokens=full - 1,
        max_model_len=20,
        cp_rank=int(ints(g, 0, ranks - 1, 1)),
        SAMPLE_FROM_ANCHOR=from_anchor,
        PAD_SLOT_ID=-1,
        CP_SIZE=ranks,
        CP_INTERLEAVE=2,
        BLOCK_SIZE=8,
    )


@CASES
@given(SEEDS, st.integers(1, 2), st.integers(1, 2), st.integers(0, 2), st.integers(1, 4))
def test_ngram(seed: int, requests: int, shortest: int, more: int, drafts: int) -> None:
    """A vocabulary of two tokens makes n-grams recur; the second kernel reads what the first wrote."""
    g = generator(seed)
    most, length, block = requests + 1, 16, 8
    longest = shortest + more
    tokens = ints(g, 0, 1, most, length)
    shared = {
        "token_ids_ptr": tokens,
        "token_ids_stride": length,
        "idx_mapping_ptr": slots(g, requests, most, torch.int64),
        "total_len_ptr": ints(g, 0, length, most),
        "num_sampled_ptr": ints(g, 0, 2, requests),
    }
    scanned = assert_equal(
        f"{SPEC}.ngram.speculator",
        "_ngram_scan_kernel",
        (requests, 2),
        **shared,
        scratch_ptr=torch.full((requests, 3), -7),
        scratch_stride=3,
        L=length,
        MIN_N=shortest,
        MAX_N=longest,
        MAX_N_PO2=1 << (longest - 1).bit_length(),
        BLOCK_L=block,
    )
    assert_equal(
        f"{SPEC}.ngram.speculator",
        "_ngram_finalize_kernel",
        (requests,),
        **shared,
        last_sampled_ptr=ints(g, 100, 199, most, dtype=torch.int64),
        scratch_ptr=scanned["scratch_ptr"],
        scratch_stride=3,
        drafts_ptr=torch.full((requests, drafts), -7),
        L=length,
        N_BLOCKS=2,
        K=drafts,
        K_PO2=1 << (drafts - 1).bit_length(),
        N_BLOCKS_PO2=2,
    )
