"""Two ranks decide what one rank decides: same tokens as without tensor parallelism, by mp and by Ray.

Every rank drafts, verifies and accepts for itself, so a rank that saw other logits would soon be out of step with the
others: the tokens below, and the acceptance, would differ.
"""

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.engines import engine, greedy, random_prompts
from tests.ray_cluster import actors, two_nodes
from tests.scale import SCALE
from tests.spec_worker.conftest import CONTEXT, TOKENS, VOCAB, metric, token_ids, write_agreeable_checkpoint

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="binds CPU workers; on GPUs it would need two of them"
)

PROMPTS = 120
MODES = {
    "ar": {"mode": "ar"},
    "linear": {"mode": "linear", "block_length": 8},
    "linear-threshold": {"mode": "linear", "block_length": 8, "draft_threshold": 0.5},
}
QUICK = "linear"  # the others add up to minutes: NLD_TEST_SCALE=2 runs them as well
SKIP_QUICK = pytest.mark.skipif(SCALE <= 1, reason="minutes of engine starts: set NLD_TEST_SCALE=2")


@pytest.fixture(scope="module", autouse=True)
def engine_core_in_this_process() -> Iterator[None]:
    """The ranks are processes of their own all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1" if (os.cpu_count() or 1) > 1 else "0|0")
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_agreeable_checkpoint(tmp_path_factory.mktemp("parallel"))


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return random_prompts(PROMPTS, VOCAB, longest=CONTEXT - TOKENS)


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'vllm-nld[ray]'")
    import ray

    with two_nodes() as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", address)
        yield address
        ray.shutdown()


@contextlib.contextmanager
def ranks(checkpoint: Path, mode: str, executor: str | None = None, split: str = "tensor") -> Iterator[Any]:
    """An engine with two ranks, or with one where no executor is named."""
    options: dict[str, Any] = {"additional_config": {"nld": MODES[mode]}, "disable_log_stats": False, "block_size": 32}
    if executor:
        options |= {f"{split}_parallel_size": 2, "distributed_executor_backend": executor}
    try:
        with engine(checkpoint, **options) as llm:
            yield llm
    finally:
        if executor == "ray":
            sys.modules["ray"].shutdown()  # vLLM leaves the workers' places reserved until its process ends


def accepted(llm: Any) -> int:
    return metric(llm, "spec_decode_num_accepted_tokens")


@pytest.fixture(scope="module")
def alone(checkpoint: Path, prompts: list[list[int]]) -> Callable[[str], tuple[list[list[int]], int]]:
    """One rank's tokens and number of accepted drafts in a mode."""

    @functools.cache
    def decode(mode: str) -> tuple[list[list[int]], int]:
        with ranks(checkpoint, mode) as llm:
            return token_ids(greedy(llm, prompts, TOKENS)), accepted(llm)

    return decode


@pytest.mark.parametrize("mode", [mode if mode == QUICK else pytest.param(mode, marks=SKIP_QUICK) for mode in MODES])
@pytest.mark.parametrize("executor", ["mp", "ray"])
def test_two_ranks_decide_as_one(
    executor: str,
    mode: str,
    checkpoint: Path,
    prompts: list[list[int]],
    alone: Callable[[str], tuple[list[list[int]], int]],
    request: pytest.FixtureRequest,
) -> None:
    """120 prompts of 1 to 236 tokens, 16 at a time; by Ray, each rank is on a node of its own."""
    if executor == "ray":
        request.getfixturevalue("ray_address")
    expected = alone(mode)
    with ranks(checkpoint, mode, executor) as llm:
        assert llm.llm_engine.vllm_config.parallel_config.distributed_executor_backend == executor
        tokens, drafts = token_ids(greedy(llm, prompts, TOKENS)), accepted(llm)
        assert (tokens, drafts) == expected
        assert (drafts > 0) == (mode != "ar")
        if executor == "ray" and mode == QUICK:
            assert_killed_worker_is_an_error(llm, prompts)


@SKIP_QUICK
def test_two_pipeline_stages_decide_as_one(
    checkpoint: Path, prompts: list[list[int]], alone: Callable[[str], tuple[list[list[int]], int]]
) -> None:
    """In mode ar, which does not draft."""
    with ranks(checkpoint, "ar", "mp", split="pipeline") as llm:
        assert (token_ids(greedy(llm, prompts, TOKENS)), 0) == alone("ar")


def test_drafts_over_pipeline_stages_are_refused(checkpoint: Path) -> None:
    with (
        pytest.raises(ValueError, match="one pipeline stage: use --tensor-parallel-size"),
        ranks(checkpoint, "linear", "mp", split="pipeline"),
    ):
        pass


def assert_killed_worker_is_an_error(llm: Any, prompts: list[list[int]]) -> None:
    """The second rank's process is killed in the middle of a batch: no hang, and the executor says that it has failed.

    (A server then answers its running requests with an error and ends: tests/deploy/test_ray_serve.py.)
    """
    first, second = actors("RayCpuWorker")
    assert first.ppid() != second.ppid(), "each rank has its own node"
    executor = llm.llm_engine.engine_core.engine_core.model_executor
    assert not executor.is_failed
    threading.Timer(0.3, second.kill).start()
    begin = time.monotonic()
    with pytest.raises(RuntimeError):
        greedy(llm, prompts * 20, TOKENS)
    assert executor.is_failed
    assert time.monotonic() - begin < 60


def test_cluster_with_too_few_places_is_refused(ray_address: str) -> None:
    """vLLM itself would wait for half an hour."""
    from vllm_nld.ray_cpu import check_cluster

    check_cluster(SimpleNamespace(world_size=2, ray_runtime_env=None))
    with pytest.raises(ValueError, match=r"offers 2 of the 3 vllm_cpu .*`ray start"):
        check_cluster(SimpleNamespace(world_size=3, ray_runtime_env=None))
