"""vLLM's own bugs."""

import asyncio
from pathlib import Path

import pytest

from tests.compat.conftest import options, without
from tests.engines import engine, greedy
from tests.metrics.conftest import Counted
from vllm_nld.compat import upstream
from vllm_nld.serving import limits

PROMPT = [5, 20, 40]
OVERSIZED = list(range(limits.ALLOWED_TOKEN_IDS + 1))


def test_with_refuse_oversized_lists_the_engine_never_sees_it(counted: Counted) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match="allowed_token_ids: 1025 are too many"):
        greedy(counted.llm, [PROMPT], 4, allowed_token_ids=[token % 320 for token in OVERSIZED])
    assert len(greedy(counted.llm, [PROMPT], 4)[0].token_ids) == 4


def test_the_limits_are_the_workers() -> None:
    from vllm.v1.worker.gpu.sample import logit_bias

    assert logit_bias.MAX_NUM_ALLOWED_TOKEN_IDS == limits.ALLOWED_TOKEN_IDS
    assert logit_bias.MAX_NUM_LOGIT_BIAS_TOKENS == limits.LOGIT_BIAS
    assert logit_bias.MAX_NUM_STOP_TOKEN_IDS == limits.STOP_TOKEN_IDS


def test_without_abort_requests_at_shutdown_clients_wait_for_ever() -> None:
    """A client that waits for its request's next output, of an AsyncLLM whose engine is gone.

    `tests/deploy/test_lifecycle.py` has a server with clients that outlive the grace time.
    """
    with without(upstream.abort_requests_at_shutdown), pytest.raises(TimeoutError):
        asyncio.run(shut_down())
    assert asyncio.run(shut_down()) == "abort"


async def shut_down() -> str | None:
    """Why the client's request ended; TimeoutError if it does not."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

    llm = AsyncLLM.__new__(AsyncLLM)  # what it has after its engine has ended, which takes no process to see
    llm.output_processor = OutputProcessor(None, log_stats=False)
    llm.output_handler = asyncio.ensure_future(asyncio.Event().wait())
    request = EngineCoreRequest(
        request_id="a",
        external_req_id="a",
        prompt_token_ids=PROMPT,
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=9, output_kind=RequestOutputKind.DELTA, detokenize=False),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    queue = RequestOutputCollector(RequestOutputKind.DELTA, "a")
    llm.output_processor.add_request(request, None, queue=queue)
    llm.shutdown()
    output = await asyncio.wait_for(queue.get(), timeout=5)
    return output.outputs[0].finish_reason


def test_without_refuse_oversized_lists_the_worker_fails(checkpoint: Path) -> None:
    """The request is taken, and raises in the worker."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=4, allowed_token_ids=[token % 320 for token in OVERSIZED])
    with without(upstream.refuse_oversized_lists), engine(checkpoint, **options()) as llm:
        llm.llm_engine.add_request("large", {"prompt_token_ids": PROMPT}, params)
        with pytest.raises(ValueError, match="Too many allowed token IDs"):
            llm.llm_engine.step()
