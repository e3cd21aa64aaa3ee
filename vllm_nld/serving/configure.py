"""Sets up self-speculation for an NLD server: by default, by `--additional-config`, or by `--speculative-config`.

Self-speculation uses vLLM's method `draft_model` with the served checkpoint as its own draft model. Without flags, the
server sets what

    --speculative-config '{"method": "draft_model", "model": "<the served model>", "num_speculative_tokens": 31}'

would, with block_size - 1 from the checkpoint's config.
"""

import importlib.util
import json
from typing import TYPE_CHECKING

from vllm.logger import init_logger

from vllm_nld.serving.modes import DEFAULT, MODES
from vllm_nld.serving.settings import FIELD, Settings
from vllm_nld.serving.speculation import block_length, draft_tokens, drafts_for_itself, longest_block
from vllm_nld.serving.trees import obstacle

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger("vllm.plugins.nld")  # under "vllm", where its log level and format apply

SCHEDULER = "spec_worker.scheduler.build"
AR = """serve with --additional-config '{"nld": {"mode": "ar"}}'"""


def configure(vllm_config: "VllmConfig") -> None:
    """Set up what the flags ask for. Raises ValueError if they contradict each other or cannot be combined."""
    settings = Settings.of(vllm_config)
    speculative, model = vllm_config.speculative_config, vllm_config.model_config
    if not settings.drafts:
        if speculative is not None:
            raise ValueError(
                f"{FIELD}.mode {settings.mode!r} contradicts --speculative-config ({speculative.method}): remove one"
            )
        return
    if speculative is not None and not drafts_for_itself(vllm_config):
        if settings != Settings():
            raise ValueError(
                f"{FIELD} asks for self-speculation, --speculative-config for {speculative.method} "
                f"with {speculative.model}: remove one, or name {model.model} as its model"
            )
        return  # the user chose another drafter
    if model.runner_type != "generate":
        return
    check_possible(vllm_config)
    check_mask_kernel(settings.mask_kernel)
    if speculative is None:
        speculate(vllm_config, settings)
    else:
        check_explicit(vllm_config, settings)
        speculative.model = model.model  # one spelling from here on
    if (settings.tree_nodes or settings.has_groups) and (why := obstacle(vllm_config)) is not None:
        asked = f".tree_nodes {settings.tree_nodes}" if settings.tree_nodes else ": mode 'quadratic'"
        raise ValueError(f"{FIELD}{asked} is not possible: {why}")
    if (length := block_length(vllm_config)) > model.hf_config.block_size:
        what = f"{FIELD}.block_length" if settings.block_length else "--speculative-config's num_speculative_tokens + 1"
        raise ValueError(
            f"{what} is {length}, but the checkpoint was trained for blocks of up to {model.hf_config.block_size}, "
            "the block_size of its config.json: lower it"
        )
    share_context(vllm_config)
    vllm_config.attention_config.use_non_causal = True  # draft passes need a kernel that can look ahead
    check_room(vllm_config)
    schedule_by_mode(vllm_config)


def schedule_by_mode(vllm_config: "VllmConfig") -> None:
    """Use our scheduler. Raises ValueError for another scheduler, or a flag that would cut blocks."""
    scheduler = vllm_config.scheduler_config
    if scheduler.scheduler_cls not in (None, SCHEDULER):
        raise ValueError(f"--scheduler-cls {scheduler.scheduler_cls} cannot schedule modes: remove it, or {AR}")
    rows = vllm_config.num_speculative_tokens + 1
    if 0 < scheduler.long_prefill_token_threshold < rows:
        limit = f"--long-prefill-token-threshold {scheduler.long_prefill_token_threshold}"
        raise ValueError(f"{limit} would cut {what_takes(vllm_config)}")
    scheduler.scheduler_cls = SCHEDULER


def speculate(vllm_config: "VllmConfig", settings: Settings) -> None:
    """Make the served model its own drafter."""
    from vllm.config import SpeculativeConfig

    model = vllm_config.model_config
    length = settings.block_length or longest_block(model)
    vllm_config.speculative_config = SpeculativeConfig(
        method="draft_model",
        model=model.model,
        revision=model.revision,
        num_speculative_tokens=draft_tokens(settings, length),
        target_model_config=model,
        target_parallel_config=vllm_config.parallel_config,
    )
    logger.info("Blocks of %d tokens, default mode %s. To turn drafting off, %s.", length, settings.mode or DEFAULT, AR)


def share_context(vllm_config: "VllmConfig") -> None:
    """Give the drafter the served model's context: vLLM reads it without --hf-overrides, and serves the shorter one."""
    speculative = vllm_config.speculative_config
    if speculative is not None and speculative.draft_model_config is not None:
        speculative.draft_model_config.max_model_len = vllm_config.model_config.max_model_len


def check_possible(vllm_config: "VllmConfig") -> None:
    """Raise ValueError if the worker cannot run draft passes."""
    parallel = vllm_config.parallel_config
    if parallel.pipeline_parallel_size > 1:
        raise ValueError(
            "self-speculation drafts with the whole model on one pipeline stage: use --tensor-parallel-size "
            f"instead of --pipeline-parallel-size {parallel.pipeline_parallel_size}, or {AR}"
        )
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        raise ValueError(f"self-speculation does not work with context parallelism: turn that off, or {AR}")
    if not vllm_config.use_v2_model_runner:
        raise ValueError(f"self-speculation needs Model Runner V2: unset VLLM_USE_V2_MODEL_RUNNER, or {AR}")


# Fields of --speculative-config that have no effect: in self-speculation the drafter uses the served model's values.
SHARED = (
    "attention_backend",
    "kv_cache_dtype",
    "max_model_len",
    "quantization",
    "use_local_argmax_reduction",
)

# Values of rejection_sample_method: two lossless ones, and fixed acceptance rates, for cost measurements.
VERIFIERS = ("standard", "block", "synthetic")


def check_mask_kernel(name: str) -> None:
    """Raise ValueError if the kernel for attention masks cannot run here."""
    if name == "auto":
        return
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        raise ValueError(f"{FIELD}.mask_kernel {name!r} needs a GPU: remove it, the CPU has one kernel")
    if name == "xformers" and importlib.util.find_spec("xformers") is None:
        raise ValueError(f"{FIELD}.mask_kernel 'xformers': pip install 'vllm-nld[xformers]', or remove it")


def check_explicit(vllm_config: "VllmConfig", settings: Settings) -> None:
    """Raise ValueError if an explicit --speculative-config contradicts the settings or has fields without effect."""
    speculative, model = vllm_config.speculative_config, vllm_config.model_config
    assert speculative is not None
    room = speculative.num_speculative_tokens
    if settings.tree_nodes > room:
        raise ValueError(
            f"{FIELD}.tree_nodes {settings.tree_nodes} exceeds num_speculative_tokens {room} of --speculative-config: "
            "remove one, or make them equal"
        )
    if settings.has_groups and (wanted := draft_tokens(settings, block_length(vllm_config))) != room:
        raise ValueError(
            f"mode 'quadratic' with {FIELD}.block_length {block_length(vllm_config)} needs num_speculative_tokens "
            f"{wanted} of --speculative-config, not {room}: a block's drafts, and as many masks per group as the block "
            "has tokens"
        )
    if settings.block_length is not None and draft_tokens(settings, settings.block_length) != room:
        raise ValueError(
            f"{FIELD}.block_length {settings.block_length} contradicts num_speculative_tokens {room} of "
            "--speculative-config: a block is the last token and its drafts, so remove one or make them differ by 1"
        )
    for name in SHARED:
        value = getattr(speculative, name)
        if value and value != getattr(model, name, None):
            raise ValueError(
                f"--speculative-config {name} ({value}) has no effect in self-speculation, because "
                "the served model itself drafts: remove it"
            )
    if speculative.enable_adaptive_verification:
        check_adaptive(settings)
    if speculative.rejection_sample_method not in VERIFIERS:
        raise ValueError(
            f"--speculative-config rejection_sample_method {speculative.rejection_sample_method!r} changes what a mode "
            f"answers: use one of {', '.join(VERIFIERS)}"
        )
    if settings.draft_threshold and speculative.draft_sample_method == "probabilistic":
        raise ValueError(
            f"{FIELD}.draft_threshold needs greedy drafts, because keeping only probable ones changes the distribution "
            "of sampled ones: leave draft_sample_method of --speculative-config at greedy, or the threshold at 0"
        )


def check_adaptive(settings: Settings) -> None:
    """Raise ValueError if this server's drafts cannot be trimmed on the device. vLLM checks what it needs itself:
    full CUDA graphs, no user LoRA, no pipeline stages.
    """
    from vllm.platforms import current_platform

    flag = "--speculative-config enable_adaptive_verification"
    fit = [name for name, mode in MODES.items() if not (mode.takes_blocks or mode.by_load or mode.grouped)]
    unfit = [name for name in settings.modes if name not in fit]
    if unfit:
        raise ValueError(
            f"{flag} trims chains of drafts after they were scheduled, which mode {' and '.join(unfit)} cannot have: "
            f'serve with --additional-config \'{{"nld": {{"mode": "linear", "allowed_modes": {json.dumps(fit)}}}}}\''
        )
    if settings.tree_nodes:
        raise ValueError(f"{flag} cannot trim trees: set {FIELD}.tree_nodes to 0")
    if not current_platform.is_cuda_alike():
        raise ValueError(f"{flag} needs a GPU: remove it")


def check_room(vllm_config: "VllmConfig") -> None:
    """Raise ValueError if a step's rows don't fit into the context or a step; warn if a full batch of them does not."""
    rows, scheduler = vllm_config.num_speculative_tokens + 1, vllm_config.scheduler_config
    limits = {
        "--max-model-len": vllm_config.model_config.max_model_len,
        "--max-num-batched-tokens": scheduler.max_num_batched_tokens,
        "--max-num-scheduled-tokens": scheduler.max_num_scheduled_tokens,  # None: max_num_batched_tokens
    }
    for flag, limit in limits.items():
        if limit is not None and rows > limit:
            raise ValueError(f"{flag} {limit} has no room for {what_takes(vllm_config)}")
    flag = "--max-num-scheduled-tokens" if scheduler.max_num_scheduled_tokens else "--max-num-batched-tokens"
    budget = scheduler.max_num_scheduled_tokens or scheduler.max_num_batched_tokens
    if scheduler.max_num_seqs * rows > budget:
        logger.warning(
            "--max-num-seqs %d times the block length %d exceeds %s %d: if more than %d requests draft at a time, they "
            "take turns. Lower --max-num-seqs or the block length, or raise the budget to %d.",
            scheduler.max_num_seqs,
            rows,
            flag,
            budget,
            budget // rows,
            scheduler.max_num_seqs * rows,
        )


def what_takes(vllm_config: "VllmConfig") -> str:
    """What a step's rows are for, and what to do if there are too many."""
    rows, length = vllm_config.num_speculative_tokens + 1, block_length(vllm_config)
    if rows > max(length, Settings.of(vllm_config).tree_nodes + 1):
        groups = (rows - length) // length
        return f"a block of {length} and {groups} groups of masks: raise it, or lower {FIELD}.groups or block_length"
    if rows > length:
        return f"a tree of {rows - 1} nodes and its anchor: raise it, or lower {FIELD}.tree_nodes"
    return f"a block of {rows}: raise it, or lower the block length"
