"""What a request that cannot be served raises: HTTP 400 in every endpoint of vLLM's, a ValueError offline."""

from vllm.exceptions import VLLMValidationError


class RequestError(VLLMValidationError, ValueError):
    """The message names the field, its value and what is possible."""
