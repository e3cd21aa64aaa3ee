"""Limits for the lists in a request: Model Runner V2's sampler keeps them in tensors of fixed size.

check_sizes(params)      # raises VLLMValidationError, naming the field, its length and the limit
"""

from typing import Any

ALLOWED_TOKEN_IDS = 1024
LOGIT_BIAS = 1024
STOP_TOKEN_IDS = 128  # including EOS; only stored if min_tokens is set


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
