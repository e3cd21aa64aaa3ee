"""What an idle engine must have left: every KV block free, no request in scheduler, worker or front end."""

from typing import Any


def parts(llm: Any) -> tuple[Any, Any, Any]:
    """Front end, scheduler and model runner of an engine that runs in this process."""
    core = llm.llm_engine.engine_core.engine_core
    return llm.llm_engine, core.scheduler, core.model_executor.driver_worker.worker.model_runner


def assert_nothing_left(llm: Any) -> None:
    """Call it when no request is running; the last step tells the worker what has finished."""
    front, scheduler, runner = parts(llm)
    while scheduler.has_requests():
        front.step()
    pool, state = scheduler.kv_cache_manager.block_pool, runner.req_states
    assert not front.has_unfinished_requests() and not scheduler.requests
    assert not getattr(scheduler, "_decodings", None), "the scheduler remembers how a request decoded"
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1, "a KV block leaked (block 0 is vLLM's null block)"
    assert sorted(state.free_indices) == list(range(state.max_num_reqs)), "a slot of the worker leaked"
    assert not state.req_id_to_index and not state.index_to_req_id
