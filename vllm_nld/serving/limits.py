"""Limits for a request's lists and integers. Model Runner V2's sampler keeps lists in tensors of fixed size.

check_sizes(params)      # both raise VLLMValidationError, naming the field and the limit
check_integers(params)
"""

from typing import Any

ALLOWED_TOKEN_IDS = 1024
LOGIT_BIAS = 1024
STOP_TOKEN_IDS = 128  # including EOS; only stored if min_tokens is set
INTEGERS = ("top_k", "seed", "max_tokens", "min_tokens", "thinking_token_budget", "stream_interval")
TOKEN_IDS = ("stop_token_ids", "allowed_token_ids", "logit_bias")
REPETITION = ("max_pattern_size", "min_pattern_size", "min_count")  # of repetition_detection


def check_sizes(params: Any) -> None:
    """Raise VLLMValidationError if a list is too long for the worker. `params` must include the model's EOS already."""
    import vllm.envs as envs
    from vllm.exceptions import VLLMValidationError  # any other error would become an HTTP 500

    stops = params.all_stop_token_ids if params.min_tokens else ()
    bad = sum(len(word) for word in params.bad_words_token_ids or ())
    for name, length, limit in (
        ("allowed_token_ids", len(params.allowed_token_ids or ()), ALLOWED_TOKEN_IDS),
        ("logit_bias", len(params.logit_bias or ()), LOGIT_BIAS),
        ("stop_token_ids with min_tokens", len(stops), STOP_TOKEN_IDS),
        ("bad_words in tokens", bad, envs.VLLM_MAX_BAD_WORDS_TOTAL_TOKENS),
    ):
        if length > limit:
            raise VLLMValidationError(f"{name}: {length} are too many; the limit is {limit} per request")


def check_integers(params: Any) -> None:
    """Raise VLLMValidationError for an integer beyond 64 bits, which cannot be sent to the engine core."""
    from vllm.exceptions import VLLMValidationError

    values = {name: getattr(params, name) for name in INTEGERS}
    values |= {f"repetition_detection.{name}": getattr(params.repetition_detection, name, None) for name in REPETITION}
    single = [(name, value) for name, value in values.items() if value is not None]
    listed = [(name, value) for name in TOKEN_IDS for value in getattr(params, name) or ()]
    for name, value in single + listed:
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise VLLMValidationError(f"{name} must fit in 64 bits, not {value}")
