"""Requests of several modes together, alone, or step by step, and what the reference answers to each."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

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

    def rounds(self, model: ReferenceModel) -> Any:
        """The reference's tokens and rounds, for greedy requests that ignore EOS."""
        mode = self.extra.get("nld_mode", "linear")
        threshold = self.extra.get("nld_threshold", 0.9) if mode == "diffusion" else 0.0
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
    outputs = llm.generate(
        prompts, [ask.params for ask in asks], lora_request=loras if any(loras) else None, use_tqdm=False
    )
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
