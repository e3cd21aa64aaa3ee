"""An engine in this process that serves every mode, and what checks ask of it."""

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from bench.gpu_check.record import Setting
from vllm_nld.serving.modes import MODES as SERVED

EOS = 11
MODES = {name: {"nld_mode": name} for name, mode in SERVED.items() if not mode.grouped}  # others need `groups`
LOSSLESS = [name for name in MODES if SERVED[name].drafts and not SERVED[name].takes_blocks]
AR = "ar"
EMULATED = [1, 4, 8, 16, 32, 64, 128]  # tokens of the draft passes that have graphs on a CPU


@dataclasses.dataclass
class Served:
    """The engine, and what its draft passes did since it has started."""

    llm: Any
    setting: Setting
    dtype: str
    tokens: int  # per answer
    prompts: list[list[int]]
    graphs: bool
    seconds: float  # to start
    emulation: Any = None  # of CUDA graphs, on a CPU
    replays: Counter[Any] = dataclasses.field(default_factory=Counter)  # by graph
    eager: int = 0  # passes without a graph
    told: dict[str, list[Any]] = dataclasses.field(default_factory=dict)  # answers by mode
    reference: Any = None  # the same model in plain PyTorch, where it is not nano

    def __post_init__(self) -> None:
        """Count the draft passes from here on."""
        speculator = self.speculator
        replay, forward = speculator.graphs.run_fullgraph, speculator.passes.forward

        def run_fullgraph(desc: Any) -> Any:
            self.replays[desc] += 1
            return replay(desc)

        def run_forward(*args: Any) -> Any:
            self.eager += 1
            return forward(*args)

        speculator.graphs.run_fullgraph, speculator.passes.forward = run_fullgraph, run_forward

    @property
    def summary(self) -> str:
        return f"started in {self.seconds:.0f} s"

    @property
    def runner(self) -> Any:
        return self.llm.llm_engine.model_executor.driver_worker.worker.model_runner

    @property
    def speculator(self) -> Any:
        return self.runner.speculator

    def answers(self, mode: str) -> list[Any]:
        """Greedy answers to all prompts at once, in one mode; asked once."""
        if mode not in self.told:
            self.told[mode] = self.ask(self.prompts, [MODES[mode]] * len(self.prompts))
        return self.told[mode]

    def ask(self, prompts: Sequence[list[int]], extras: Sequence[dict[str, Any]], **sampling: Any) -> list[Any]:
        """Completions of requests that run together. AR requests come with the likeliest tokens."""
        from vllm import SamplingParams

        common = {"temperature": 0, "max_tokens": self.tokens, "stop_token_ids": [EOS], "detokenize": False} | sampling
        params = [
            SamplingParams(**common, logprobs=5 if extra.get("nld_mode") == AR else None, extra_args=extra)
            for extra in extras
        ]
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        return [output.outputs[0] for output in self.llm.generate(asked, params, use_tqdm=False)]


def token_ids(completions: Sequence[Any]) -> list[list[int]]:
    return [list(completion.token_ids) for completion in completions]


@contextlib.contextmanager
def serving(
    model: Any, setting: Setting, dtype: str, graphs: bool, prompts: list[list[int]], tokens: int, **options: Any
) -> Iterator[Served]:
    """Start an engine. Without a GPU: scheduled asynchronously, as on one, and with emulated graphs."""
    import pytest

    from tests.engines import engine
    from tests.spec_worker.conftest import allow_async
    from tests.spec_worker.emulation import emulated_graphs

    options = {"dtype": dtype, "enforce_eager": not (graphs and setting.gpu), "disable_log_stats": False} | options
    if not setting.gpu:
        options |= {"block_size": 32}
    with contextlib.ExitStack() as stack:
        if not setting.gpu:
            allow_async(stack.enter_context(pytest.MonkeyPatch.context()))
        begun = time.perf_counter()
        llm = stack.enter_context(engine(model, **(options | setting.options)))
        seconds, emulation = time.perf_counter() - begun, None
        if graphs and not setting.gpu:
            speculator = llm.llm_engine.model_executor.driver_worker.worker.model_runner.speculator
            most = speculator.max_num_tokens  # as vLLM does on a GPU: no graph is larger than a step
            emulation = stack.enter_context(emulated_graphs(speculator, [size for size in EMULATED if size <= most]))
            capture(speculator)
        yield Served(llm, setting, dtype, tokens, prompts, graphs, seconds, emulation)


def capture(speculator: Any) -> None:
    import torch

    with torch.inference_mode():
        speculator.capture()
