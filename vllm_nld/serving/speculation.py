"""Does the served model draft for itself, and with which adapter?"""

import os
from typing import Any

from vllm_nld.model.adapter import Adapter, find_adapter
from vllm_nld.model.configs import is_ours
from vllm_nld.serving.decoding import grouped_tokens
from vllm_nld.serving.settings import Settings


def drafts_for_itself(vllm_config: Any) -> bool:
    """Whether an NLD model is its own draft model: method `draft_model` with the served checkpoint as `model`."""
    return shares_weights(vllm_config.speculative_config, vllm_config.model_config)


def shares_weights(speculative: Any, model: Any) -> bool:
    """Whether a SpeculativeConfig, or None, names the checkpoint of an NLD ModelConfig as its draft model."""
    if speculative is None or not is_ours(model) or not speculative.uses_draft_model():
        return False
    return same_checkpoint(speculative.model, model.model)


def same_checkpoint(one: str, other: str) -> bool:
    """Whether two names mean the same checkpoint. A folder may be relative, end in a slash, or be a symlink."""
    return one == other or (os.path.isdir(one) and os.path.isdir(other) and os.path.samefile(one, other))


def block_length(vllm_config: Any) -> int:
    """B of a server that drafts for itself: the anchor and its drafts.

    vLLM's num_speculative_tokens has room for B - 1 drafts, for the nodes of a tree, and for the drafts and masks of a
    block with groups, whichever are more.
    """
    settings, room = Settings.of(vllm_config), vllm_config.speculative_config.num_speculative_tokens
    if settings.block_length is not None:
        return settings.block_length
    if settings.has_groups:
        return longest_block(vllm_config.model_config)
    return room + 1 if settings.tree_nodes < room else min(room + 1, longest_block(vllm_config.model_config))


def draft_tokens(settings: Settings, length: int) -> int:
    """The most draft tokens that a step has per request, on a server with these settings and blocks of this length."""
    groups = min(settings.groups or length, length) if settings.has_groups else 0
    return max(grouped_tokens(length, groups), settings.tree_nodes)


def longest_block(model: Any) -> int:
    """The block length that the checkpoint was trained for, or what fits into the context."""
    return min(model.hf_config.block_size, model.max_model_len)


def draft_adapter(vllm_config: Any) -> Adapter | None:
    """The draft adapter that the settings ask for. Raises CheckpointError if there is no such adapter."""
    model = vllm_config.model_config
    return find_adapter(model.model, model.revision, Settings.of(vllm_config).draft_lora)
