"""Decoding under a steady load, step by step, in an engine that runs in this process.

decoder = Decoder(llm)
with decoder.running(requests=4, block=8, tokens=400) as step:
    step()                                  # True if it was a decode step of the whole batch
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

CONTEXT = 128  # prompt tokens
AR = 1  # block length without drafts


class Decoder:
    """Runs requests of one block length at a time."""

    def __init__(self, llm: Any) -> None:
        self.llm, self.scheduled = llm, 0
        self.runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
        execute = self.runner.execute_model

        def record_scheduled(scheduler_output: Any, *args: Any, **options: Any) -> Any:
            self.scheduled = scheduler_output.total_num_scheduled_tokens
            return execute(scheduler_output, *args, **options)

        self.runner.execute_model = record_scheduled

    @contextlib.contextmanager
    def running(
        self, requests: int, block: int, tokens: int, extra: dict[str, Any] | None = None
    ) -> Iterator[Callable[[], bool]]:
        """Start requests of `tokens` tokens each; they are aborted at the end. extra: their nld_ fields."""
        from vllm import SamplingParams

        engine = self.llm.llm_engine
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, extra_args=extra)
        names = [f"{time.monotonic_ns()}-{index}" for index in range(requests)]
        for index, name in enumerate(names):
            prompt = {"prompt_token_ids": [200 + (index + token) % 512 for token in range(CONTEXT)]}
            engine.add_request(name, prompt, params)

        def step() -> bool:
            engine.step()
            return bool(self.scheduled == requests * block)

        try:
            yield step
        finally:
            engine.abort_request(names)
            while engine.has_unfinished_requests():
                engine.step()
