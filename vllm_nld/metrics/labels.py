"""The one place that says which mode a request is counted under."""

from typing import Any

MODE_ARGUMENT = "nld_mode"  # in a request's vllm_xargs
UNVERIFIED = ("diffusion",)  # modes whose blocks are taken as they are: nothing is accepted or rejected


def default_mode(vllm_config: Any) -> str:
    """The mode of a request that names none: what the server was configured for."""
    from vllm_nld.speculation import drafts_for_itself

    if drafts_for_itself(vllm_config):
        return "linear"
    return "ar" if vllm_config.speculative_config is None else "other"  # another drafter, asked for explicitly


def mode_of(sampling_params: Any, default: str) -> str:
    """The mode of a request; `default` is the server's."""
    extra = getattr(sampling_params, "extra_args", None)
    return extra.get(MODE_ARGUMENT, default) if extra else default
