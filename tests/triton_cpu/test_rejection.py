"""Twins of the verification kernels accept and resample the same tokens as vLLM's kernels in the interpreter."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.triton_cpu.harness import CASES, SEEDS, assert_equal, floats, generator, ints, slots, starts

SAMPLER = "vllm.v1.worker.gpu.spec_decode.rejection_sampler"
UTILS = "vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils"
BLOCK, RESAMPLE_BLOCK = 16, 16
ROUNDING = 4e-6  # absolute: sums of exponentials and their logs in float32


class Verification:
    """A random batch to verify; drafts are often the target's choice, sometimes -1.

    Every step compares twin and interpreter on the same inputs and passes the twin's outputs to the next step.
    """

    def __init__(
        self, seed: int, requests: int, vocabulary: int, draft_dtype: torch.dtype | None, dtype: torch.dtype
    ) -> None:
        g = generator(seed)
        self.g, self.requests, self.vocabulary, self.steps = g, requests, vocabulary, 3
        self.slots = requests + 1
        places = ints(g, 1, self.steps + 1, requests)
        self.rows = starts(places)
        total = int(self.rows[-1])
        self.mapping = slots(g, requests, self.slots)
        self.expanded = self.mapping.repeat_interleave(places)
        self.local = torch.cat([torch.arange(int(n), dtype=torch.int32) for n in places])
        self.target = floats(g, total, vocabulary, dtype=dtype)
        self.temperature = torch.tensor([0.0, 1.0, 0.6])[ints(g, 0, 2, self.slots, dtype=torch.int64)]
        self.seeds = ints(g, -(2**62), 2**62, self.slots, dtype=torch.int64)
        self.positions = ints(g, 0, 999, total, dtype=torch.int64)
        self.draft_logits = None
        if draft_dtype is not None:
            self.draft_logits = floats(g, self.slots, self.steps, vocabulary, dtype=draft_dtype)
        self.drafts = ints(g, -1, vocabulary - 1, total)
        agree = torch.rand(total - 1, generator=g) < 0.6
        self.drafts[1:][agree] = self.target[:-1].float().argmax(1).to(torch.int32)[agree]
        self.blocks = -(-vocabulary // BLOCK)

    def matrix(self, name: str, value: torch.Tensor) -> dict[str, Any]:
        return {f"{name}_ptr": value, f"{name}_stride": value.stride(0)}

    def draft_arguments(self) -> dict[str, Any]:
        strides = (0, 0) if self.draft_logits is None else self.draft_logits.stride()[:2]
        return {
            "draft_logits_ptr": self.draft_logits,
            "draft_logits_stride_0": strides[0],
            "draft_logits_stride_1": strides[1],
        }

    def stats(self) -> None:
        total = len(self.drafts)
        outputs = {
            "target_local_argmax": torch.zeros(total, self.blocks, dtype=torch.int64),
            "target_local_max": torch.zeros(total, self.blocks),
            "target_local_sumexp": torch.ones(total, self.blocks),
            "draft_local_max": torch.zeros(total, self.blocks),
            "draft_local_sumexp": torch.ones(total, self.blocks),
        }
        arguments: dict[str, Any] = {}
        for name, value in outputs.items():
            arguments |= self.matrix(name, value)
        done = assert_equal(
            UTILS,
            "_compute_local_logits_stats_kernel",
            (total, self.blocks),
            **arguments,
            **self.matrix("target_logits", self.target),
            **self.draft_arguments(),
            expanded_idx_mapping_ptr=self.expanded,
            expanded_local_pos_ptr=self.local,
            temp_ptr=self.temperature,
            vocab_size=self.vocabulary,
            num_speculative_steps=self.steps,  # up to vLLM 0.32
            num_logits=len(self.drafts),  # from vLLM 0.33 on
            BLOCK_SIZE=BLOCK,
            HAS_DRAFT_LOGITS=self.draft_logits is not None,
            atol=ROUNDING,
        )
        self.stats_arguments: dict[str, Any] = {}
        for name in outputs:
            self.stats_arguments |= self.matrix(name, done[f"{name}_ptr"])

    def shared(self) -> dict[str, Any]:
        """The arguments that every later kernel takes, without the argmax."""
        arguments = {k: v for k, v in self.stats_arguments.items() if not k.startswith("target_local_argmax")}
        return arguments | self.matrix("target_logits", self.target) | self.draft_arguments()

    def cumulative_ratios(self) -> None:
        done = assert_equal(
            UTILS,
            "_compute_cumulative_log_p_kernel",
            (self.requests,),
            **self.shared(),
            cumulative_log_p_ptr=torch.zeros(len(self.drafts)),
            draft_sampled_ptr=self.drafts,
            cu_num_logits_ptr=self.rows,
            idx_mapping_ptr=self.mapping,
            temp_ptr=self.temperature,
            vocab_num_blocks=self.blocks,
            PADDED_VOCAB_NUM_BLOCKS=1 << (self.blocks - 1).bit_length(),
            HAS_DRAFT_LOGITS=self.draft_logits is not None,
            atol=ROUNDING,
        )
        self.cumulative = done["cumulative_log_p_ptr"]

    def residual_mass(self) -> None:
        done = assert_equal(
            UTILS,
            "_compute_local_residual_mass_kernel",
            (len(self.drafts), self.blocks),
            **self.shared(),
            **self.matrix("local_residual_mass", torch.zeros(len(self.drafts), self.blocks)),
            cumulative_log_p_ptr=self.cumulative,
            draft_sampled_ptr=self.drafts,
            expanded_idx_mapping_ptr=self.expanded,
            expanded_local_pos_ptr=self.local,
            temp_ptr=self.temperature,
            vocab_size=self.vocabulary,
            num_speculative_steps=self.steps,  # up to vLLM 0.32
            num_logits=len(self.drafts),  # from vLLM 0.33 on
            vocab_num_blocks=self.blocks,
            BLOCK_SIZE=BLOCK,
            PADDED_VOCAB_NUM_BLOCKS=1 << (self.blocks - 1).bit_length(),
            atol=ROUNDING,
        )
        self.mass = done["local_residual_mass_ptr"]

    def reject(self, synthetic: bool, block_verification: bool) -> None:
        mass = self.mass if block_verification and self.draft_logits is not None else None
        done = assert_equal(
            UTILS,
            "_rejection_kernel",
            (self.requests,),
            **self.matrix("sampled", torch.full((self.requests, self.steps + 1), -7)),
            rejected_steps_ptr=torch.full((self.requests,), -7, dtype=torch.int32),
            target_rejected_logsumexp_ptr=torch.full((self.requests,), -7.0),
            draft_rejected_logsumexp_ptr=torch.full((self.requests,), -7.0),
            **self.shared(),
            **{k: v for k, v in self.stats_arguments.items() if k.startswith("target_local_argmax")},
            draft_sampled_ptr=self.drafts,
            cu_num_logits_ptr=self.rows,
            idx_mapping_ptr=self.mapping,
            temp_ptr=self.temperature,
            seed_ptr=self.seeds,
            pos_ptr=self.positions,
            synthetic_conditional_rates_ptr=torch.tensor([0.9, 0.5, 0.3]) if synthetic else None,
            cumulative_log_p_ptr=self.cumulative if block_verification else None,
            local_residual_mass_ptr=mass,
            local_residual_mass_stride=0 if mass is None else mass.stride(0),
            fly_entropy_ptr=None,  # this and the two below: from vLLM 0.33 on
            fly_entropy_threshold=0.3,
            FLY_WINDOW_SIZE=0,
            vocab_num_blocks=self.blocks,
            PADDED_VOCAB_NUM_BLOCKS=1 << (self.blocks - 1).bit_length(),
            HAS_DRAFT_LOGITS=self.draft_logits is not None,
            SYNTHETIC_MODE=synthetic,
            USE_BLOCK_VERIFICATION=block_verification,
            atol=ROUNDING,
        )
        self.rejected = done

    def resample(self, fp64: bool, block_verification: bool) -> None:
        blocks = -(-self.vocabulary // RESAMPLE_BLOCK)
        wide = torch.float64 if fp64 else torch.float32
        self.resampled = assert_equal(
            UTILS,
            "_resample_kernel",
            (self.requests, blocks),
            **self.matrix("resampled_local_argmax", torch.zeros(self.requests, blocks, dtype=torch.int64)),
            **self.matrix("resampled_local_max", torch.zeros(self.requests, blocks, dtype=wide)),
            **self.matrix("target_logits", self.target),
            target_rejected_logsumexp_ptr=self.rejected["target_rejected_logsumexp_ptr"],
            **self.draft_arguments(),
            draft_rejected_logsumexp_ptr=self.rejected["draft_rejected_logsumexp_ptr"],
            rejected_step_ptr=self.rejected["rejected_steps_ptr"],
            cu_num_logits_ptr=self.rows,
            expanded_idx_mapping_ptr=self.expanded,
            draft_sampled_ptr=torch.cat([self.drafts, self.drafts.new_zeros(1)]),
            temp_ptr=self.temperature,
            seed_ptr=self.seeds,
            pos_ptr=self.positions,
            cumulative_log_p_ptr=self.cumulative if block_verification else None,
            contexts_ptr=None,
            contexts_stride=0,
            watermarking_ptr=None,
            watermarking_skip_mask_ptr=None,
            watermark_key_0=0,
            watermark_key_1=0,
            vocab_size=self.vocabulary,
            BLOCK_SIZE=RESAMPLE_BLOCK,
            HAS_DRAFT_LOGITS=self.draft_logits is not None,
            USE_FP64=fp64,
            USE_BLOCK_VERIFICATION=block_verification,
            CONTEXT_WIDTH=1,
            WATERMARK=False,
            DEDUPLICATE_CONTEXTS=False,
            atol=1e-4,  # log(1 - q / p) where q is close to p
        )

    def insert(self) -> None:
        blocks = -(-self.vocabulary // RESAMPLE_BLOCK)
        maxima = self.resampled["resampled_local_max_ptr"].clone()
        maxima[torch.rand(maxima.shape, generator=self.g) < 0.1] = torch.nan
        assert_equal(
            UTILS,
            "_insert_resampled_kernel",
            (self.requests,),
            **self.matrix("sampled", self.rejected["sampled_ptr"]),
            num_sampled_ptr=self.rejected["rejected_steps_ptr"],
            **self.matrix("resampled_local_argmax", self.resampled["resampled_local_argmax_ptr"]),
            **self.matrix("resampled_local_max", maxima),
            resample_num_blocks=blocks,
            cu_num_logits_ptr=self.rows,
            expanded_idx_mapping_ptr=self.expanded,
            temp_ptr=self.temperature,
            PADDED_RESAMPLE_NUM_BLOCKS=1 << (blocks - 1).bit_length(),
        )


# (draft logits, target logits, synthetic acceptance, float64 noise); each combination compiles its own machine code
KINDS = [
    (None, torch.float32, False, False),
    (None, torch.bfloat16, True, True),
    (torch.float32, torch.float32, False, True),
    (torch.bfloat16, torch.float32, True, False),
]


@CASES
@given(SEEDS, st.integers(1, 2), st.integers(1, 30), st.sampled_from(KINDS))
def test_token_verification(seed: int, requests: int, vocabulary: int, kind: tuple[Any, ...]) -> None:
    draft_dtype, dtype, synthetic, fp64 = kind
    batch = Verification(seed, requests, vocabulary, draft_dtype, dtype)
    batch.stats()
    batch.reject(synthetic, block_verification=False)
    batch.resample(fp64, block_verification=False)
    batch.insert()


@CASES
@given(SEEDS, st.integers(1, 2), st.integers(1, 30), st.sampled_from([None, torch.float32]))
def test_block_verification(seed: int, requests: int, vocabulary: int, draft_dtype: torch.dtype | None) -> None:
    batch = Verification(seed, requests, vocabulary, draft_dtype, torch.float32)
    batch.stats()
    batch.cumulative_ratios()
    if draft_dtype is not None:
        batch.residual_mass()
    batch.reject(False, block_verification=True)
    batch.resample(False, block_verification=True)
    batch.insert()


@CASES
@given(SEEDS, st.integers(1, 3))
def test_gather_draft_sampled(seed: int, requests: int) -> None:
    g = generator(seed)
    places = ints(g, 1, 4, requests)
    total = int(places.sum())
    assert_equal(
        SAMPLER,
        "_gather_draft_sampled_kernel",
        (-(-total // 4),),
        draft_sampled_ptr=torch.full((total,), -7, dtype=torch.int32),
        pos_ptr=torch.full((total,), -7),
        input_ids_ptr=ints(g, 0, 99, total + 4),
        positions_ptr=ints(g, 0, 9, total + 4, dtype=torch.int64),
        logits_indices_ptr=slots(g, total, total + 4, torch.int64),
        expanded_idx_mapping_ptr=slots(g, requests, requests + 1).repeat_interleave(places),
        expanded_local_pos_ptr=torch.cat([torch.arange(int(n), dtype=torch.int32) for n in places]),
        prefill_len_ptr=ints(g, 0, 9, requests + 1),
        num_logits=total,
        BLOCK_SIZE=4,
    )


@CASES
@given(SEEDS, st.integers(1, 4))
def test_flatten_sampled(seed: int, requests: int) -> None:
    g = generator(seed)
    places = ints(g, 1, 4, requests)
    assert_equal(
        SAMPLER,
        "_flatten_sampled_kernel",
        (requests,),
        flat_sampled_ptr=torch.full((int(places.sum()),), -7),
        sampled_ptr=ints(g, 0, 99, requests, 5, dtype=torch.int64),
        sampled_stride=5,
        num_sampled_ptr=(torch.rand(requests, generator=g) * (places + 1)).int(),
        cu_num_logits_ptr=starts(places),
    )
