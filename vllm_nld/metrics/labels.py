"""The one place that says which mode a request is counted under."""

from typing import Any

from vllm_nld.serving.modes import AUTO, Served, own_names

UNVERIFIED = ("diffusion",)  # modes whose blocks are taken as they are: nothing is accepted or rejected


def default_mode(vllm_config: Any) -> str:
    """The mode of a request that names none: what the server was configured for."""
    served = Served.of(vllm_config)
    return served.mode if served.modes else "other"  # another drafter, asked for explicitly


def mode_of(sampling_params: Any, default: str) -> str:
    """The mode of a request, which was checked when it came in; `default` is the server's."""
    extra = getattr(sampling_params, "extra_args", None)
    mode = own_names(extra).get("nld_mode", AUTO) if extra else AUTO
    return default if mode == AUTO else mode
