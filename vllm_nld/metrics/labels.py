"""Which mode a request is counted under, and what is counted for a mode."""

from typing import Any

from vllm_nld.serving.decoding import Decoding
from vllm_nld.serving.modes import MODES
from vllm_nld.serving.requests import ServerModes

OTHER = "other"  # another drafter, chosen by --speculative-config


def default_mode(vllm_config: Any) -> str:
    """The mode of requests that don't choose one."""
    served = ServerModes.of(vllm_config)
    return served.mode if served.modes else OTHER


def mode_of(sampling_params: Any, default: str) -> str:
    """The mode of a request, from its record; `default` if it has none."""
    decoding = Decoding.of(sampling_params)
    return default if decoding is None else decoding.mode


def falls_back(sampling_params: Any) -> bool:
    """Whether a request would have draft trees or groups of masks if it were not for its sampling parameters."""
    return Decoding.load(sampling_params.extra_args) != Decoding.of(sampling_params)


def takes_blocks(mode: str) -> bool:
    """Whether the mode takes blocks as drafted, without verification."""
    return mode in MODES and MODES[mode].takes_blocks


def has_groups(mode: str) -> bool:
    """Whether groups of masks draft blocks in the mode."""
    return mode in MODES and MODES[mode].grouped


def counts_prefill(mode: str) -> bool:
    """Whether a request's NFE includes the prefill in this mode."""
    return mode not in MODES or MODES[mode].counts_prefill


def forwards(mode: str) -> tuple[str, ...]:
    """The kinds of forwards that a mode has."""
    return MODES[mode].forwards if mode in MODES else ("target",)
