"""Requests of several modes together, alone, or step by step, and what the reference answers to each."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from tests.spec_worker.leaks import parts
from vllm_nld.reference import ReferenceModel, generate

BLOCK = 8  # of the engines that these requests go to


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: what it asks for, and how it is sampled."""

    prompt: list[int]
    extra: dict[str, Any] = field(default_factory=dict)  # nld_ fields
    lora: Any = None  # a LoRARequest
    sampling: dict[str, Any] = field(default_factory=dict)

    @property
    def params(self) -> Any:
        """Greedy, 20 tokens, EOS ignored, where nothing else is asked for."""
        from vllm import SamplingParams

        common = {"temperature": 0, "max_tokens": 20, "ignore_eos": True, "detokenize": False}
        return SamplingParams(**(common | self.sampling), extra_args=self.extra)

    def rounds(self, model: ReferenceModel, threshold: float = 0.9) -> Any:
        """The reference's tokens and rounds, for greedy requests that ignore EOS; `threshold` is the server's."""
        mode = self.extra.get("nld_mode", "linear")
        mode = "linear" if mode == "auto" else mode  # the same tokens, but in other rounds
        threshold = self.extra.get("nld_threshold", threshold) if mode == "diffusion" else 0.0
        return generate(
            model,
            self.prompt,
            mode=mode,
            block_length=self.extra.get("nld_block_length", BLOCK),
            threshold=self.extra.get("nld_draft_threshold", threshold),
            max_new_tokens=self.sampling.get("max_tokens", 20),
            ignore_eos=True,
        )


def together(llm: Any, asks: Sequence[Ask]) -> list[Any]:
    """All requests at once; their completions."""
    prompts: list[Any] = [{"prompt_token_ids": ask.prompt} for ask in asks]
    loras = [ask.lora for ask in asks]
    assert not getattr(llm, "failed", False), "a step of this engine has failed before: it would wait for ever"
    llm.failed = True
    try:
        outputs = llm.generate(
            prompts, [ask.params for ask in asks], lora_request=loras if any(loras) else None, use_tqdm=False
        )
    except ValueError:  # a request that is refused takes no step
        llm.failed = llm.llm_engine.has_unfinished_requests()
        raise
    llm.failed = False
    return [output.outputs[0] for output in outputs]


def alone(llm: Any, asks: Sequence[Ask]) -> list[Any]:
    """One request after another."""
    return [together(llm, [ask])[0] for ask in asks]


def tokens(completions: Sequence[Any]) -> list[list[int]]:
    return [list(completion.token_ids) for completion in completions]


def stepped(llm: Any, asks: Sequence[Ask], steps: int) -> list[list[int]]:
    """The engine steps, `steps` of them or until all is done, in which each request was given tokens; then abort."""
    front = llm.llm_engine
    names = [str(index) for index in range(len(asks))]
    for name, ask in zip(names, asks, strict=True):
        front.add_request(name, {"prompt_token_ids": ask.prompt}, ask.params, lora_request=ask.lora)
    given: list[list[int]] = [[] for _ in asks]
    ended = [steps] * len(asks)
    for step in range(steps):
        for output in front.step():
            given[int(output.request_id)].append(step)
            if output.finished:
                ended[int(output.request_id)] = step
        if not front.has_unfinished_requests():
            break
    front.abort_request(names)
    while front.has_unfinished_requests():
        front.step()
    return [[*at, end] for at, end in zip(given, ended, strict=True)]


def longest_wait(given: Sequence[int]) -> int:
    """Most steps in a row without a token, from the first step to the end."""
    return max(after - before for before, after in pairwise([-1, *given]))


@dataclass(slots=True)
class Step:
    """One step of the worker: tokens scheduled by request, and the rows of each draft pass after it."""

    scheduled: list[int]
    passes: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.scheduled)


@contextlib.contextmanager
def watched(llm: Any) -> Iterator[list[Step]]:
    """The worker's steps from here on."""
    runner, steps = parts(llm)[2], []
    execute, draft = runner.execute_model, runner.model.draft

    def execute_model(output: Any, *args: Any, **more: Any) -> Any:
        if output.num_scheduled_tokens:
            steps.append(Step(list(output.num_scheduled_tokens.values())))
        return execute(output, *args, **more)

    def count(ids: Any, positions: Any) -> Any:
        steps[-1].passes.append(len(ids))
        return draft(ids, positions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "execute_model", execute_model)
        patch.setattr(runner.model, "draft", count)
        yield steps
