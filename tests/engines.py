"""Offline vLLM engines for tests: the real engine in this process, where it starts in seconds and can be inspected."""

import contextlib
import gc
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

STARTS = itertools.count()  # of engines in this process


@contextlib.contextmanager
def engine(model: Path, **options: Any) -> Iterator[Any]:
    """A `vllm.LLM` for `model`, shut down at the end. It takes token ids, unless the options ask for a tokenizer."""
    from vllm import LLM

    keep_what_is_imported()
    defaults: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "dtype": "float32",
        "enforce_eager": True,
        "max_num_seqs": 16,
        "kv_cache_memory_bytes": 2**26,  # a quarter of the plugin's minimum, because filling it takes time
    }
    with pytest.MonkeyPatch.context() as patch, collector_left_alone():
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        llm = LLM(str(model), **(defaults | options))
    try:
        yield llm
    finally:
        with collector_left_alone():
            llm.llm_engine.engine_core.shutdown()
        gc.collect()


def keep_what_is_imported() -> None:
    """Exempt vLLM's modules from garbage collection, or each engine's end would search them for half a second. Many are
    imported while the first engine runs, so the second start exempts them, too."""
    earlier = next(STARTS)
    if earlier == 1:
        gc.collect()  # the first engine, if it has ended
    if earlier < 2:
        gc.freeze()


@contextlib.contextmanager
def collector_left_alone() -> Iterator[None]:
    """vLLM collects garbage ten times per engine, exempts the engine while it runs, and then everything no longer."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("collect", "freeze", "unfreeze"):
            patch.setattr(gc, name, lambda *_: 0)
        yield


def greedy(llm: Any, prompts: Sequence[Sequence[int]], max_tokens: int, **options: Any) -> list[Any]:
    """The engine's greedy completions of token-id prompts, ignoring EOS."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False, **options)
    outputs = llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], params, use_tqdm=False)
    return [output.outputs[0] for output in outputs]


def random_prompts(count: int, vocab_size: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Prompts of random ids with lengths spread evenly from 1 to `longest`."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.linspace(1, longest, count).long().tolist()
    return [torch.randint(0, vocab_size, (length,), generator=generator).tolist() for length in lengths]


def full_logits(completion: Any) -> torch.Tensor:
    """Logits [tokens, V] of a completion with logprobs=-1, from an engine that returns raw logits."""
    return torch.tensor([[step[token].logprob for token in range(len(step))] for step in completion.logprobs])
