"""The patches, in the order in which they apply.

apply()                                     # the plugin does this in every process
for state in states(): print(state.patch.name, state)
"""

from vllm_nld.compat import cpu, metrics, requests, speculation, upstream
from vllm_nld.compat.patch import Patch
from vllm_nld.compat.patcher import Patcher

PATCHES: tuple[Patch, ...] = (
    cpu.import_pixtral_without_torchvision,
    cpu.request_amx_tiles,
    cpu.use_native_kernels,
    cpu.reuse_compiled_models,
    cpu.announce_compiling,
    cpu.place_cpu_workers_on_ray,
    speculation.build_self_speculator,
    speculation.reserve_block_slots,
    speculation.admit_one_block_budget,
    speculation.charge_only_scheduled_tokens,
    speculation.hand_over_draft_plan,
    speculation.capture_chosen_lengths,
    speculation.skip_draft_round_trip,
    speculation.calibrate_at_start,
    metrics.add_scheduler_stats_field,
    metrics.add_forward_count,
    metrics.report_passes,
    speculation.skip_idle_drafter,
    metrics.tally_requests,
    upstream.refuse_oversized_lists,
    upstream.allow_min_p_and_logit_bias,
    upstream.keep_a_token_at_tiny_top_p,
    requests.check_requests,
    metrics.count_refusals,
    requests.read_http_modes,
    requests.declare_bool_fields,
    requests.check_beam_searches,
    requests.read_token_requests,
    upstream.check_arguments_first,
    upstream.abort_requests_at_shutdown,
)

PATCHER = Patcher(PATCHES)
apply, states = PATCHER.apply, PATCHER.states
