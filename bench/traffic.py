"""Good traffic and two kinds of trouble, which make drafts bad, in an engine of this process.

driver = Driver(llm, "auto", requests=4)
driver.turn_to("random words")              # drops all requests, and starts with new ones
driver.steps(10)                            # (output tokens, seconds)
"""

import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

Prompt = list[int]  # token ids

RANDOM_TOKENS = 24  # of a prompt of random words
LONG = 320  # output tokens at most
SHORT = 100  # of answers to random words, some of which end in one word over and over, which is easy to guess


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is asked, and how well the draft adapter works.

    random: prompts of random words, answered at a temperature at which nobody can guess the next word.
    adapter: a factor on the draft adapter's scale; far from 1, drafts are noise.
    """

    random: bool = False
    adapter: float = 1.0


GOOD = "good"
TROUBLES = {"random words": Traffic(random=True), "broken adapter": Traffic(adapter=-100.0)}
TRAFFIC = {GOOD: Traffic(), **TROUBLES}


def questions(tokenizer: Any) -> list[Prompt]:
    """nano's held-out prompts as token ids."""
    from bench.prompts import read

    return [tokenizer.encode(question.prompt, add_special_tokens=False) for question in read(tokenizer, None)]


def random_words(vocabulary: int) -> Iterator[Prompt]:
    """Endless prompts of random tokens, the same ones in every process."""
    source = random.Random(0)
    while True:
        yield [source.randrange(vocabulary // 2, vocabulary) for _ in range(RANDOM_TOKENS)]  # no special tokens


class Driver:
    """Keeps a number of requests running in an engine, and times its steps."""

    def __init__(self, llm: Any, mode: str, requests: int, prompts: Sequence[Prompt] | None = None) -> None:
        self._engine, self._mode, self._requests = llm.llm_engine, mode, requests
        self._model = self._engine.model_executor.driver_worker.worker.model_runner.model
        self._adapter = self._model.draft_adapter and self._model.draft_adapter.adapter
        self._auto = self._engine.engine_core.engine_core.scheduler.auto
        self._good = itertools.cycle(prompts or questions(llm.get_tokenizer()))
        self._random = random_words(llm.llm_engine.model_config.get_vocab_size())
        self._numbers = itertools.count()
        self._next: Callable[[], Prompt] = lambda: next(self._good)
        self._sampling: dict[str, Any] = {}
        self._running: set[str] = set()

    def turn_to(self, name: str, mode: str | None = None) -> None:
        """Drop all requests and continue with this traffic, and in this mode, if one is given."""
        traffic, self._mode = TRAFFIC[name], mode or self._mode
        self.stop()
        if self._adapter:
            self._model.draft_adapter.adapter = replace(self._adapter, scale=self._adapter.scale * traffic.adapter)
        if traffic.random:
            self._next = lambda: next(self._random)
            self._sampling = {"temperature": 1.5, "max_tokens": SHORT}
        else:
            self._next = lambda: next(self._good)
            self._sampling = {"temperature": 0.0, "max_tokens": LONG}
        self._fill(first=True)

    def stop(self) -> None:
        """Drop all requests."""
        self._engine.abort_request(list(self._running))
        self._running.clear()

    def steps(self, count: int) -> tuple[int, float]:
        """Run some steps; output tokens and seconds. New requests replace those that end, outside the time."""
        if self._auto is not None:
            self._auto.finish(None, busy=False, outputs=())  # the time since the last step was another engine's
        tokens, seconds = 0, 0.0
        for _ in range(count):
            begin = time.perf_counter()
            outputs = self._engine.step()
            seconds += time.perf_counter() - begin
            for output in outputs:
                tokens += len(output.outputs[0].token_ids)
                if output.finished:
                    self._running.discard(output.request_id)
            self._fill()
        return tokens, round(seconds, 6)

    def _fill(self, first: bool = False) -> None:
        """Add requests until as many run as should. first: they are as if they had started at different times."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        while len(self._running) < self._requests:
            name = str(next(self._numbers))
            params = SamplingParams(detokenize=False, **self._sampling)
            if first:  # or one mode's would all end in one step, and the other's in several
                params.max_tokens = params.max_tokens * (len(self._running) + 1) // self._requests
            params.extra_args = {"nld_mode": self._mode}
            params.output_kind = RequestOutputKind.DELTA
            self._engine.add_request(name, {"prompt_token_ids": self._next()}, params)
            self._running.add(name)
