"""The shipped checkpoint with too few KV blocks: requests of all modes, trees too, are preempted, prompts cut."""

import contextlib
from collections.abc import Iterator
from typing import Any

from bench.gpu_check.answers import same
from bench.gpu_check.drafting import B, reference, replayed, waiting
from bench.gpu_check.nano import SMALL, amount, set_up
from bench.gpu_check.record import DIFF, FAIL, OK, Check, Finding, Setting, Subject
from bench.gpu_check.served import MODES, Served, serving, token_ids

GROUPS = 2
GROUPED: dict[str, Any] = {"nld_mode": "quadratic", "nld_block_length": 8}  # fits with its groups into a small step
CHAIN: dict[str, Any] = {"nld_mode": "linear", "nld_tree_nodes": 0}  # other `linear` requests get trees here
TOKENS = 416  # that the KV cache holds: a few requests' worth
CONTEXT = 256


@contextlib.contextmanager
def open_tight(setting: Setting) -> Iterator[Served]:
    """Chunked prefill, prefix caching and asynchronous scheduling, as on any server; too few KV blocks."""
    from tests.spec_worker.test_nano import token_prompts
    from vllm_nld.nano import checkpoint_path

    count, tokens = amount(setting)
    options: dict[str, Any] = {
        "max_num_seqs": 16,
        "max_model_len": CONTEXT,
        "max_num_batched_tokens": (GROUPS + 2) * B,
        "num_gpu_blocks_override": TOKENS // (16 if setting.gpu else 32),
        "additional_config": {"nld": {"mode": "linear", "tree_nodes": B - 1, "groups": GROUPS}},
    }
    if setting.gpu:
        options |= {"attention_backend": "TRITON_ATTN"} | SMALL
    prompts = [prompt for prompt in token_prompts(2 * count) if len(prompt) < CONTEXT - tokens - B][:count]
    with serving(checkpoint_path(), setting, "float32", True, prompts, tokens, **options) as served:
        yield served


def everything(served: Served) -> tuple[list[list[int]], list[list[int]]]:
    """Answers to all prompts in all modes at once, and the reference's."""
    from vllm_nld.reference import generate

    modes, exact = MODES | {"chain": CHAIN, "quadratic": GROUPED}, []
    pairs = [(prompt, mode) for prompt in served.prompts for mode in modes]
    found = token_ids(served.ask([prompt for prompt, _ in pairs], [modes[mode] for _, mode in pairs]))
    for prompt in served.prompts:
        how = {"block_length": B, "max_new_tokens": served.tokens}
        plain, denoised = (list(generate(reference(), prompt, mode=mode, **how).tokens) for mode in ("ar", "diffusion"))
        exact += [denoised if mode == "diffusion" else plain for mode in modes]
    return found, exact


def metric(served: Served, name: str) -> int:
    return sum(metric.value for metric in served.llm.get_metrics() if metric.name == f"vllm:{name}")


def preempted(served: Served) -> Finding:
    """All modes while requests are preempted."""
    found = same(*everything(served), served.dtype)
    count = metric(served, "num_preemptions")
    verdict = DIFF if found.verdict == OK and not count else found.verdict
    return Finding(verdict, f"{found.text}; {count} preemptions", {"preemptions": count})


def cached(served: Served) -> Finding:
    """The same questions again: prefixes come from the cache, where no draft may have left anything."""
    hits = metric(served, "prefix_cache_hits")
    found = same(*everything(served), served.dtype)
    hits = metric(served, "prefix_cache_hits") - hits
    verdict = FAIL if found.verdict == OK and not hits else found.verdict
    return Finding(verdict, f"{found.text}; {hits} tokens from the cache", {"hits": hits})


def never_waits(served: Served) -> Finding:
    """Trees, and chains beside masks. Quadratic with few groups looks once a step whether one was hit."""
    return waiting(served, {"tree": MODES["linear"], "chain": CHAIN})


CHECKS = (
    Check("set-up", "nothing that was asked for is silently off", set_up),
    Check("preemption", "a preempted request answers as if it never was; trees are lossless", preempted, 240),
    Check("prefix cache", "only causal KV of accepted tokens is cached", cached, 240),
    Check("draft graphs", "a server with trees has graphs too", replayed),
    Check("no waits", "trees grow and are walked on the device", never_waits),
)


def subject() -> Subject:
    return Subject("nano, few KV blocks", "nano", open_tight, CHECKS)
