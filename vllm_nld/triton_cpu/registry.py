"""The kernels, vLLM's and our own, that have a native twin, each with the digests of the source it was written for.

A twin reimplements what a kernel does, so it is right only for the versions of the kernel that somebody compared it
with. Each entry therefore names the kernel by module, name and digests of its source (see `source.py`), the oldest
vLLM release first. If the installed source has another digest, the kernel runs in the interpreter, which is slow but
always right, and `vllm-nld doctor` reports it. Run `python -m vllm_nld.triton_cpu.registry` to print the installed
digests.

A new release changed a kernel? Read its diff. If the twin's results are the same, add the digest. If the kernel has
another parameter, give the twin a parameter of that name with a default. If the same parameters mean something else,
give the twin a parameter that says so, and a row of its own to the new digest, with the value (`STEP_SEEDS`).
"""

import importlib.util
from dataclasses import dataclass
from typing import Literal

from vllm_nld.triton_cpu import source

State = Literal["native", "interpreted", "stale"]


@dataclass(frozen=True, slots=True)
class Twin:
    """A kernel and the function that replaces it."""

    module: str  # that defines the kernel
    kernel: str
    digests: tuple[str, ...]  # of the kernel's source, one a version
    function: str  # in `twins`, as "area.name"
    constants: tuple[str, ...] = ()  # parameters of the twin's own that are true for these versions


@dataclass(frozen=True, slots=True)
class KernelStatus:
    """How a kernel runs on this installation."""

    name: str  # module.kernel
    state: State


GPU = "vllm.v1.worker.gpu"
SPEC = f"{GPU}.spec_decode"
SAMPLE = f"{GPU}.sample"
OWN = "spec_worker"

STEP_SEEDS = "STEP_SEEDS"  # from vLLM 0.33 on, a draft's noise depends on its place in the block

# module -> (kernel, digests of its source, the twin as "area.name", constants)
KERNELS: dict[str, tuple[tuple[str, ...], ...]] = {
    f"{GPU}.block_table": (
        ("_gather_block_tables_kernel", "61d7480d9e2be8d1 9f0b8f1215827734", "block_table.gather_block_tables"),
        ("_compute_slot_mappings_kernel", "524f7fa6ae40a3ac", "block_table.compute_slot_mappings"),
    ),
    f"{GPU}.buffer_utils": (("_apply_write_kernel", "cbf9a5bdd24f0fa4 7953fdfb21fad82f", "block_table.apply_write"),),
    f"{GPU}.input_batch": (
        ("_prepare_prefill_inputs_kernel", "54bf117def02efa9", "inputs.prepare_prefill_inputs"),
        ("_prepare_pos_seq_lens_kernel", "6a7e2c214640b1fa", "inputs.prepare_pos_seq_lens"),
        ("_combine_sampled_and_draft_tokens_kernel", "4f3a3a154648cb12", "inputs.combine_tokens"),
        ("_expand_idx_mapping_kernel", "56779339c4a966f8", "inputs.expand_idx_mapping"),
        ("_get_num_sampled_and_rejected_kernel", "557c4e8157b18bfb", "outputs.count_sampled_and_rejected"),
        ("_post_update_kernel", "f39df8e3d9da4cfe 872e3ad72bee1bda", "outputs.post_update"),
        ("_post_update_num_computed_tokens_kernel", "e0b8ee6d722c245f", "outputs.advance_computed_tokens"),
    ),
    f"{GPU}.structured_outputs": (
        ("_apply_grammar_bitmask_kernel", "fb46c4c58a7dbc84", "grammar.apply_grammar_bitmask"),
    ),
    f"{GPU}.metrics.logits": (("_num_nans_kernel", "6a38be01b7f15f17", "grammar.count_nans"),),
    f"{SAMPLE}.gumbel": (
        ("_gumbel_sample_kernel", "09d1faa61386f8be", "sampling.gumbel_sample"),
        ("_gumbel_sample_kernel", "9fd543f96330633f", "sampling.gumbel_sample", STEP_SEEDS),
        ("_temperature_kernel", "b80f80d1ae7977b6", "sampling.apply_temperature"),
    ),
    f"{SAMPLE}.min_p": (("_min_p_kernel", "2d7bef4c1a8c000b", "sampling.apply_min_p"),),
    "vllm.v1.sample.ops.topk_topp_triton": (
        ("_topk_topp_kernel", "46c9f763bbf4b67a d24e3e1cef813d12", "top_k_top_p.top_k_top_p"),
    ),
    f"{SAMPLE}.penalties": (
        ("_penalties_kernel", "fb05a90e918c867f", "penalties.apply_penalties"),
        ("_bincount_kernel", "fd46ecf29ea4a22a", "penalties.count_tokens"),
    ),
    f"{SAMPLE}.logit_bias": (("_bias_kernel", "e7b1944a572b98f1", "bias.apply_bias"),),
    f"{SAMPLE}.bad_words": (("_bad_words_kernel", "fb403b384985188d", "bias.apply_bad_words"),),
    f"{SAMPLE}.thinking_budget": (
        ("_update_committed_marker_cache_kernel", "ec9ea2a137f7268b", "thinking.update_marker_cache"),
        ("_thinking_budget_kernel", "d529b7ae25852d2a", "thinking.apply_budget"),
    ),
    f"{SAMPLE}.logprob": (
        ("_topk_log_softmax_kernel", "a1291d85a30f0236", "logprobs.log_softmax_at"),
        ("_ranks_kernel", "9db71e124f95f865", "logprobs.ranks"),
        ("_fill_logprob_token_ids_kernel", "9670d4b93107a1ed", "logprobs.fill_token_ids"),
    ),
    f"{SAMPLE}.prompt_logprob": (
        ("_prompt_logprobs_token_ids_kernel", "e2863f4d3f8de9c6", "logprobs.prompt_token_ids"),
    ),
    f"{SAMPLE}.output": (("_compact_sampling_mask_kernel", "deb7c1a0f4374d27", "logprobs.compact_support"),),
    f"{SPEC}.rejection_sampler": (
        ("_gather_draft_sampled_kernel", "3b49cdf1ac6e704e", "resampling.gather_draft_sampled"),
        ("_flatten_sampled_kernel", "cd38d460f9f2183c", "resampling.flatten_sampled"),
    ),
    f"{SPEC}.rejection_sampler_utils": (
        ("_compute_local_logits_stats_kernel", "2c6ca2abc893edb6 38d9155ba0696d7d", "rejection.logits_stats"),
        ("_rejection_kernel", "1622ebe3423a6eba", "rejection.reject"),
        ("_rejection_kernel", "03cd3b3a09e24f14", "rejection.reject", STEP_SEEDS),
        ("_compute_cumulative_log_p_kernel", "c8293ff0b70f77d9", "block_verification.cumulative_ratios"),
        (
            "_compute_local_residual_mass_kernel",
            "cb6601d4e09d155e fe3ab82fce59e877",
            "block_verification.residual_mass",
        ),
        ("_resample_kernel", "e27051fc2d6fb89c 1506b3507fe2666a", "resampling.resample"),
        ("_insert_resampled_kernel", "6271a768f6f58371", "resampling.insert_resampled"),
    ),
    f"{SPEC}.target_dependent_ar.speculator": (
        ("_prepare_prefill_inputs_kernel", "e14f0efede76472c", "drafting.prepare_target_dependent_prefill"),
        ("_prepare_decode_inputs_kernel", "eba8bfc056fd3ea4", "drafting.prepare_decode"),
        ("_update_draft_inputs_kernel", "ea78e4fe27fc9209", "drafting.update_draft_inputs"),
    ),
    f"{SPEC}.standalone_ar.speculator": (
        ("_prepare_prefill_inputs_kernel", "1a2275d688fb1738", "drafting.prepare_standalone_prefill"),
    ),
    f"{SPEC}.dflash.speculator": (
        ("_prepare_dflash_inputs_kernel", "de68b314c6704e34 dcc8fdcc99cbd9e1", "block_drafting.prepare_block"),
    ),
    f"{SPEC}.ngram.speculator": (
        ("_ngram_scan_kernel", "fde49a182ff66d50", "ngram.scan"),
        ("_ngram_finalize_kernel", "756ea7e54b6a598f", "ngram.finalize"),
    ),
    f"{OWN}.kernels": (
        ("lay_blocks_kernel", "3d91a87267c95254", "self_drafting.lay_blocks"),
        ("fill_pass_kernel", "d75483518916f93e", "self_drafting.fill_pass"),
    ),
    f"{OWN}.tree_kernels": (
        ("grow_trees_kernel", "31e10b32101bc941", "trees.grow_trees"),
        ("mask_rows_kernel", "0cb6e60cecb6f572", "trees.mask_rows"),
        ("walk_trees_kernel", "2182b5887414a329", "trees.walk_trees"),
    ),
}

TWINS: tuple[Twin, ...] = tuple(
    Twin(module, kernel, tuple(digests.split()), function, tuple(constants))
    for module, rows in KERNELS.items()
    for kernel, digests, function, *constants in rows
)
NAMES = {(twin.module, twin.kernel) for twin in TWINS}


def find(module: str, kernel: str) -> Twin | None:
    """The twin that was written for the installed version of a kernel."""
    digest = source.digest(module, kernel)
    mine = (twin for twin in TWINS if (twin.module, twin.kernel) == (module, kernel))
    return next((twin for twin in mine if digest in twin.digests), None)


def status() -> list[KernelStatus]:
    """Every Model Runner V2 kernel that the installed vLLM launches, sorted by name; only reads source files."""
    if importlib.util.find_spec("vllm") is None:
        return []
    states: dict[str, State] = {f"{module}.{kernel}": "interpreted" for module, kernel in source.launched_kernels(GPU)}
    states |= {f"{module}.{kernel}": "native" if find(module, kernel) else "stale" for module, kernel in NAMES}
    return [KernelStatus(name, state) for name, state in sorted(states.items())]


if __name__ == "__main__":
    for entry in sorted(NAMES):
        print(*entry, source.digest(*entry), "" if find(*entry) else "(changed)")
