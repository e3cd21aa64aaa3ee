"""The shipped checkpoint with too few KV blocks: requests of all modes, trees too, are preempted, prompts cut."""

import contextlib
from collections.abc import Iterator
from typing import Any

from bench.gpu_check.answers import same
from bench.gpu_check.nano import SMALL, B, amount, reference, replayed, set_up, waiting
from bench.gpu_check.record import DIFF, FAIL, OK, Check, Finding, Setting, Subject
from bench.gpu_check.served import MODES, Served, serving, token_ids

TREE = {"tree": {"nld_mode": "linear", "nld_tree_nodes": B - 1}}
TOKENS = 320  # that the KV cache holds: a few requests' worth
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
        "max_num_batched_tokens": 2 * B,
        "num_gpu_blocks_override": TOKENS // (16 if setting.gpu else 32),
        "additional_config": {"nld": {"mode": "linear", "tree_nodes": B - 1}},
    }
    if setting.gpu:
        options |= {"attention_backend": "TRITON_ATTN"} | SMALL
    prompts = [prompt for prompt in token_prompts(2 * count) if len(prompt) < CONTEXT - tokens - B][:count]
    with serving(checkpoint_path(), setting, "float32", True, prompts, tokens, **options) as served:
        yield served


def everything(served: Served) -> tuple[list[list[int]], list[list[int]]]:
    """Answers to all prompts in all modes at once, and the reference's."""
    from vllm_nld.reference import generate

    modes = {name: extra for name, extra in (MODES | TREE).items() if name != "auto"}
    pairs = [(prompt, name) for prompt in served.prompts for name in modes]
    found = token_ids(served.ask([prompt for prompt, _ in pairs], [modes[name] for _, name in pairs]))
    threshold = {"block_length": B, "threshold": MODES["diffusion"]["nld_threshold"]}
    how = {"diffusion": {"mode": "diffusion"} | threshold}
    exact = [
        generate(reference(), prompt, max_new_tokens=served.tokens, **how.get(name, {"mode": "ar"})).tokens
        for prompt, name in pairs
    ]
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
    """Trees, and chains beside masks."""
    return waiting(served, TREE | {"linear": MODES["linear"]})


CHECKS = (
    Check("set-up", "nothing that was asked for is silently off", set_up),
    Check("preemption", "a preempted request answers as if it never was; trees are lossless", preempted, 240),
    Check("prefix cache", "only causal KV of accepted tokens is cached", cached, 240),
    Check("draft graphs", "a server with trees has graphs too", replayed),
    Check("no waits", "trees grow and are walked on the device", never_waits),
)


def subject() -> Subject:
    return Subject("nano, few KV blocks", "nano", open_tight, CHECKS)
