"""The shipped checkpoint in every mode: against the plain PyTorch reference, and the modes against one another."""

import contextlib
import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

from bench.gpu_check.answers import lossless, same
from bench.gpu_check.drafting import B, accepted, draft_logits, never_waits, reference, replayed
from bench.gpu_check.record import FAIL, OK, Check, Comparison, Finding, Setting, Subject
from bench.gpu_check.served import AR, LOSSLESS, MODES, Served, serving, token_ids

SMALL = {"gpu_memory_utilization": 0.1, "kv_cache_memory_bytes": 2**28}  # several engines share a GPU


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One engine."""

    dtype: str
    graphs: bool
    backend: str

    @property
    def name(self) -> str:
        return f"nano {self.backend} {self.dtype} {'graphs' if self.graphs else 'eager'}"

    def opened(self, setting: Setting) -> Any:
        return open_nano(self, setting)


@contextlib.contextmanager
def open_nano(case: Case, setting: Setting) -> Iterator[Served]:
    """All modes on one server, whose default is `auto`, so that all block lengths have graphs."""
    from tests.spec_worker.test_nano import token_prompts
    from vllm_nld.nano import checkpoint_path

    count, tokens = amount(setting)
    options: dict[str, Any] = {"max_num_seqs": 16, "max_model_len": 1024}
    options["additional_config"] = {"nld": {"mode": "auto"}}
    if setting.gpu:
        options |= {"attention_backend": case.backend} | SMALL
    else:
        options |= {"num_gpu_blocks_override": 128}  # the emulation of graphs looks at all of them
    with serving(
        checkpoint_path(), setting, case.dtype, case.graphs, token_prompts(count), tokens, **options
    ) as served:
        yield served


def amount(setting: Setting) -> tuple[int, int]:
    """Prompts, and tokens of each answer."""
    return (2, 16) if setting.quick else (12, 64) if setting.gpu else (6, 48)


def exact(served: Served, **how: Any) -> list[list[int]]:
    """The reference's answers."""
    from vllm_nld.reference import generate

    return [generate(reference(), prompt, max_new_tokens=served.tokens, **how).tokens for prompt in served.prompts]


# Checks


def set_up(served: Served) -> Finding:
    """Nothing that was asked for is silently off."""
    runner, config = served.runner, served.llm.llm_engine.vllm_config
    layer = next(iter(config.compilation_config.static_forward_context.values()))
    state = {
        "runner": type(runner).__module__,
        "speculator": type(served.speculator).__name__,
        "asynchronous": config.scheduler_config.async_scheduling,
        "attention": type(layer.impl).__name__,
        "graphs": config.compilation_config.cudagraph_mode.name,
        "compiled": config.compilation_config.mode.name,
    }
    eager = [getattr(model, "do_not_compile", True) for model in (runner.model.model, runner.model.pathway)]
    wrong = []
    if not any(kind.__module__ == "vllm.v1.worker.gpu.model_runner" for kind in type(runner).__mro__):
        wrong.append("not Model Runner V2")
    if state["speculator"] != "SelfSpeculator":
        wrong.append("not our speculator")
    if not state["asynchronous"]:
        wrong.append("not scheduled asynchronously")
    if not state["attention"].startswith("BlockMask"):
        wrong.append("not our attention")
    if eager[0] != eager[1]:
        wrong.append("draft passes are compiled and the target is not" if eager[0] else "draft passes are not compiled")
    if served.graphs and served.setting.gpu and state["graphs"] == "NONE":
        wrong.append("no CUDA graphs")
    text = ", ".join(f"{name} {value}" for name, value in state.items())
    return Finding(FAIL if wrong else OK, f"{'; '.join(wrong)}{': ' if wrong else ''}{text}", state)


def plain(served: Served) -> Finding:
    """AR answers are the reference's."""
    from tests.spec_worker.near_ties import likeliest

    completions = served.answers(AR)
    known = [likeliest(completion) for completion in completions]
    found = lossless(exact(served, mode="ar"), token_ids(completions), known, served.dtype)
    data = {"tokens": token_ids(completions), "known": known}
    return Finding(found.verdict, found.text, data)


def speculating(mode: str, served: Served) -> Finding:
    """A lossless mode's answers are AR's."""
    from tests.spec_worker.near_ties import likeliest

    completions = served.answers(AR)
    known = [likeliest(completion) for completion in completions]
    return lossless(token_ids(served.answers(mode)), token_ids(completions), known, served.dtype)


def denoising(served: Served) -> Finding:
    """Diffusion's answers are the reference's."""
    expected = exact(served, mode="diffusion", block_length=B)
    return same(token_ids(served.answers("diffusion")), expected, served.dtype)


def mixed(served: Served) -> Finding:
    """Requests of all modes in one batch answer as with others of their own mode."""
    pairs = [(index, mode) for index in range(len(served.prompts)) for mode in MODES]
    prompts = [served.prompts[index] for index, _ in pairs]
    together = token_ids(served.ask(prompts, [MODES[mode] for _, mode in pairs]))
    apart = [list(served.answers(mode)[index].token_ids) for index, mode in pairs]
    return same(together, apart, served.dtype)


CHECKS = (
    Check("set-up", "nothing that was asked for is silently off", set_up),
    Check("ar = reference", "the model, its kernels and its cache are right", plain, 180),
    *(Check(f"{mode} = ar", "speculation is lossless", partial(speculating, mode), 180) for mode in LOSSLESS),
    Check("draft logits = reference", "mask, slots and adapter of draft passes are right", draft_logits),
    Check("acceptance = reference", "the adapter is on where drafts are made", accepted, 180),
    Check("diffusion = reference", "blocks are denoised as they should be", denoising, 180),
    Check("mixed batch", "no mode disturbs another one", mixed, 180),
    Check("draft graphs", "draft passes don't pay for launches", replayed),
    Check("no waits", "the device never waits for the host to read a result", never_waits),
)


def cases(setting: Setting) -> Iterator[Case]:
    """Every backend with every dtype that it has, eager and with graphs; what users run comes first."""
    backends = {"FLASH_ATTN": ("bfloat16",), "TRITON_ATTN": ("float32", "bfloat16")} if setting.gpu else {}
    pairs = [(backend, dtype) for backend, dtypes in backends.items() for dtype in dtypes]
    for backend, dtype in pairs or [("CPU_ATTN", "float32"), ("CPU_ATTN", "bfloat16")]:
        for graphs in (True, False):
            yield Case(dtype, graphs, backend)


def items(setting: Setting) -> Iterator[Subject | Comparison]:
    for case in cases(setting):
        yield Subject(case.name, "nano", case.opened, CHECKS)
    for case in cases(setting):
        if case.graphs:
            eager = Case(case.dtype, False, case.backend).name
            for ours, other, run in COMPARED:
                name = f"{case.name}: {ours.split(' ')[0]} as eager"
                needs = (f"{case.name}: {ours}", f"{eager}: {other}")
                yield Comparison(name, "nano", "graphs change no answer", needs, partial(run, case.dtype))


def as_ar(dtype: str, ours: Any, exact: Any) -> Finding:
    """Answers of a lossless mode in one engine against AR's in another."""
    return lossless(ours["tokens"], exact["tokens"], exact["known"], dtype)


def as_diffusion(dtype: str, ours: Any, other: Any) -> Finding:
    """Answers in diffusion mode in two engines."""
    return same(ours["tokens"], other["tokens"], dtype)


COMPARED = (  # a line of the engine with graphs, one of the engine without
    ("ar = reference", "ar = reference", as_ar),
    ("linear = ar", "ar = reference", as_ar),
    ("diffusion = reference", "diffusion = reference", as_diffusion),
)
