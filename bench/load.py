"""A moving load: a closed loop in which the number of clients rises from 1 to a peak and falls again.

Clients change with the questions that were sent, not with the clock, so every contender does the same work and its
total time counts. Requests go through the functions of vLLM's own benchmark client.

    sample = drive(server.url, questions, ramp(32), body={})
    sample["tokens_per_s"]
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from bench.prompts import Question
from vllm_nld.evaluate.loop import Stage, closed_loop

PEAK = 32
MOVING = "moving"  # the name of this load in results, next to the concurrencies

GREEDY = {"temperature": 0, "add_special_tokens": False}  # fields of every request


def ramp(peak: int) -> list[Stage]:
    """Clients doubled up to `peak` and halved down to 1. A stage sends a little more than two questions per client."""
    up = [1]
    while up[-1] < peak:
        up.append(min(2 * up[-1], peak))
    return [(clients, 2 * clients + 2) for clients in [*up, *up[-2::-1]]]


def drive(
    url: str, questions: Sequence[Question], stages: Sequence[Stage], body: Mapping[str, Any]
) -> dict[str, float]:
    """Time one run."""
    begin = time.perf_counter()
    tokens = sum(answer.output_tokens for answer in ask_all(url, questions, stages, body))
    seconds = time.perf_counter() - begin
    return {"tokens": tokens, "seconds": round(seconds, 4), "tokens_per_s": round(tokens / seconds, 2)}


def ask_all(url: str, questions: Sequence[Question], stages: Sequence[Stage], body: Mapping[str, Any]) -> list[Any]:
    """Greedy streams, as vLLM's client reports them. Raises RuntimeError if a request failed."""
    return asyncio.run(_ask_all(url, questions, stages, {**GREEDY, **body}))


async def _ask_all(url: str, questions: Sequence[Question], stages: Sequence[Stage], body: dict[str, Any]) -> list[Any]:
    async with client(url, body) as ask:
        return await closed_loop(stages, lambda index: ask(questions[index % len(questions)]))


@contextlib.asynccontextmanager
async def client(url: str, body: Mapping[str, Any]) -> AsyncIterator[Callable[[Question], Awaitable[Any]]]:
    """A function that streams one question's answer. It raises RuntimeError if the request fails."""
    import aiohttp
    from vllm.benchmarks.lib.endpoint_request_func import RequestFuncInput, async_request_openai_completions

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(question: Question) -> Any:
            request = RequestFuncInput(
                prompt=question.prompt,
                api_url=f"{url}/v1/completions",
                prompt_len=0,  # unknown, and not needed
                output_len=question.max_tokens,
                model="bench",
                extra_body=dict(body),
            )
            answer = await async_request_openai_completions(request, session)
            if not answer.success:
                raise RuntimeError(f"a request failed: {answer.error}")
            return answer

        yield ask
