"""A peer without a server: plain PyTorch, one request at a time, as Hugging Face's `generate` would run it.

It is the reference model of this repository's tests, with a KV cache and no optimisations.
"""

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.prompts import Question


@functools.cache
def reference(model: Path) -> tuple[Any, Any]:
    """The model and its tokenizer, loaded once."""
    from transformers import AutoTokenizer

    from vllm_nld.model.configs import register_configs
    from vllm_nld.reference import ReferenceModel

    register_configs()
    return ReferenceModel.from_pretrained(model), AutoTokenizer.from_pretrained(model)


def time_reference(model: Path, questions: Sequence[Question]) -> dict[str, Any]:
    """Tokens and seconds of greedy AR at concurrency 1."""
    from vllm_nld.reference import generate

    network, tokenizer = reference(model)
    tokens, begin = 0, time.perf_counter()
    for question in questions:
        ids = tokenizer.encode(question.prompt, add_special_tokens=False)
        tokens += len(generate(network, ids, mode="ar", max_new_tokens=question.max_tokens).tokens)
    seconds = time.perf_counter() - begin
    return {"tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds}
