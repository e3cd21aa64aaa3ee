"""Measures at start-up what a round takes, by block length and number of requests, for `auto`.

Made-up requests run through the engine's own steps, scheduling and sampling included, with each length in turn. It
takes a second or two; what time does not allow is extrapolated, and real steps correct all of it.
"""

import time
from typing import Any

from vllm.logger import init_logger
from vllm.sampling_params import SamplingParams
from vllm.utils.gc_utils import freeze_gc_heap
from vllm.v1.request import Request, RequestStatus

from vllm_nld.serving.decoding import RECORD
from vllm_nld.serving.modes import AUTO

logger = init_logger("vllm.plugins.nld")

SECONDS = 2.0  # for all measurements of more than one request, checked before each
STEPS, WARM_UP = 3, 1  # timed and untimed steps per measurement
MOST_STEPS = 12  # to get that far: prefill, first token, two lengths mixed
PROMPT = 8  # tokens


def calibrate(core: Any) -> None:
    """Measure on an engine core that has just started. Does nothing if `auto` is not the server's mode."""
    auto = getattr(core.scheduler, "auto", None)
    if auto is None or core.scheduler.default.mode != AUTO or core.scheduler.connector is not None:
        return  # with a connector, made-up KV would go to other engines
    time_round(core, 1, auto.controller.lengths[-1])  # whatever is compiled or allocated at first use
    begun, measured = time.perf_counter(), 0
    for requests in sizes(core.scheduler.max_num_running_reqs):
        for length in auto.controller.lengths:
            if (requests > 1 and time.perf_counter() - begun > SECONDS) or not fits(core, requests, length):
                break
            milliseconds = time_round(core, requests, length)
            if milliseconds is not None:
                auto.controller.costs.calibrate(length, requests, milliseconds)
                measured += 1
    core.scheduler.reset_prefix_cache()
    core.scheduler.make_stats()  # what they counted is nobody's
    freeze_gc_heap()  # as vLLM does at the end of start-up: what these steps have left lives as long as the engine
    logger.info("Measured %d rounds for mode auto in %.1f s.", measured, time.perf_counter() - begun)


def sizes(most: int) -> list[int]:
    """Numbers of requests to measure: 1, 4, 16, …, and the most."""
    return [*(size for size in (4**power for power in range(8)) if size < most), most]


def fits(core: Any, requests: int, length: int) -> bool:
    """Whether the requests have room in a step, in the context and in the KV cache."""
    scheduler = core.scheduler
    tokens = PROMPT + (STEPS + WARM_UP + 2) * length + length
    block = scheduler.cache_config.block_size
    return bool(
        requests * length <= scheduler.max_num_scheduled_tokens
        and tokens <= scheduler.max_model_len
        and requests * (tokens // block + 2) <= scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    )


def time_round(core: Any, requests: int, length: int) -> float | None:
    """Milliseconds of the fastest step in which this many requests verify and draft blocks of this length."""
    scheduler, auto = core.scheduler, core.scheduler.auto
    record = {RECORD: scheduler.default.record()}
    names = [f"nld-calibrate-{length}-{index}" for index in range(requests)]
    auto.forced, auto.times = length, []
    for index, name in enumerate(names):
        params = SamplingParams(temperature=0, max_tokens=scheduler.max_model_len - PROMPT, ignore_eos=True)
        params.extra_args = dict(record)
        prompt = [32 + (31 * index + 7 * place + length) % 32 for place in range(PROMPT)]
        scheduler.add_request(Request(name, prompt, params, None, block_hasher=core.request_block_hasher))
    for _ in range(MOST_STEPS):
        step(core)
        if len(auto.times) >= STEPS + WARM_UP or not scheduler.has_unfinished_requests():
            break
    scheduler.finish_requests(names, RequestStatus.FINISHED_ABORTED)
    while scheduler.has_requests() or core.batch_queue:
        step(core)
    times, auto.forced, auto.times = auto.times[WARM_UP:], None, []
    return min(times, default=None)


def step(core: Any) -> None:
    """One step, as the engine core's loop runs it."""
    _, executed = core.step_fn()
    core.post_step(executed)
