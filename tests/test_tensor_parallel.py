"""Two ranks produce the same tokens as one, in every mode, with the executors mp and ray.

Every rank drafts, verifies, denoises and accepts by itself. A rank with different logits would soon diverge from the
others, and the tokens or the number of accepted drafts would differ.
"""

import contextlib
import json
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch

from tests.adapter.test_serving import BLOCK, assert_drafts_are_trainings
from tests.engines import engine, full_logits, greedy, random_prompts
from tests.metrics.prom import wait_for
from tests.model.test_model import reference_logits
from tests.ray_cluster import actors, ray_nodes
from tests.scale import SCALE, scaled
from tests.serving.test_server import ask, connect, plain
from tests.spec_worker import vlm
from tests.spec_worker.conftest import (
    CONTEXT,
    TOKENS,
    VOCAB,
    ar_tokens,
    linear,
    metric,
    token_ids,
    write_agreeable_checkpoint,
)
from tests.spec_worker.test_diffusion import MIXTURE, answers
from tests.spec_worker.vlm import asks
from tests.tiny import VLM
from vllm_nld.model.adapter import TARGETS
from vllm_nld.nano import Prompt, checkpoint_path
from vllm_nld.reference import ReferenceModel, generate
from vllm_nld.reference.vlm import ReferenceVLM
from vllm_nld.tools.server import Server

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="binds CPU workers; on GPUs it would need two of them"
)

LOGITS = {"logprobs_mode": "raw_logits", "max_logprobs": -1}
GROUPS = 3  # of masks
MODES = [*MIXTURE, *({"nld_mode": "quadratic", "nld_block_length": length} for length in (8, 3))]
PROMPTS = random_prompts(max(scaled(48), len(MODES)), VOCAB, longest=CONTEXT - TOKENS)
ASKED = [MODES[index % len(MODES)] for index in range(len(PROMPTS))]


@pytest.fixture(scope="module", autouse=True)
def one_core_per_rank() -> Iterator[None]:
    """The ranks are separate processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1" if (os.cpu_count() or 1) > 1 else "0|0")
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vision-language model, which is the text model and more, with a vocabulary that two does not divide, and a
    draft adapter beside all projections.
    """
    return write_agreeable_checkpoint(tmp_path_factory.mktemp("parallel"), targets=tuple(TARGETS), **VLM)


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'vllm-nld[ray]'")
    import ray

    with ray_nodes(2) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", address)
        yield address
        ray.shutdown()


@contextlib.contextmanager
def ranks(checkpoint: Path, executor: str | None = None, split: str = "tensor", **options: Any) -> Iterator[Any]:
    """An engine with two ranks, or with one if no executor is given."""
    if executor:
        options |= {f"{split}_parallel_size": 2, "distributed_executor_backend": executor}
    try:
        with engine(checkpoint, **options) as llm:
            yield llm
    finally:
        if executor == "ray":
            sys.modules["ray"].shutdown()  # vLLM keeps the workers' resources reserved until its process ends


def decode(llm: Any) -> tuple[list[list[int]], int]:
    """Tokens of all prompts, and how many drafts were accepted."""
    return answers(llm, PROMPTS, ASKED), metric(llm, "spec_decode_num_accepted_tokens")


@pytest.fixture(scope="module")
def alone(checkpoint: Path) -> tuple[list[list[int]], int]:
    """The result with one rank."""
    with ranks(checkpoint, **linear(32, groups=GROUPS)) as llm:
        return decode(llm)


@pytest.mark.parametrize("executor", ["mp", "ray"])
def test_two_ranks_equal_one(
    executor: str, checkpoint: Path, alone: tuple[list[list[int]], int], request: pytest.FixtureRequest
) -> None:
    """48 prompts of 1 to 236 tokens in all modes, 16 at a time. With Ray, each rank has its own node. With mp there
    are images, too; with Ray at NLD_TEST_SCALE=2.
    """
    assert {extra.get("nld_mode") for extra in ASKED} == {None, "ar", "linear", "quadratic", "diffusion"}
    if executor == "ray":
        request.getfixturevalue("ray_address")
    else:
        request.getfixturevalue("forked")
    options = {"worker_extension_cls": "tests.ranks.Rank"} if executor == "mp" else {}
    with ranks(checkpoint, executor, **linear(32, groups=GROUPS), **LOGITS, **options) as llm:
        assert llm.llm_engine.vllm_config.parallel_config.distributed_executor_backend == executor
        tokens, accepted = decode(llm)
        assert tokens == alone[0]
        assert accepted == alone[1] > 0
        model = ReferenceVLM.from_pretrained(checkpoint)
        if executor == "mp" or SCALE > 1:
            asked = asks(16)
            shown = token_ids(vlm.run(llm, asked, TOKENS))
            assert shown == [ask.exact(model, 32, TOKENS).tokens for ask in asked]
        if executor == "ray":
            assert_killed_worker_is_an_error(llm)
        else:
            assert_logits_equal_the_reference(llm, model)
            assert_rounds_equal_the_reference(llm, model)
            assert_drafts_are_those_of_training(llm, model)
            assert_a_certain_rank_goes_along(llm, alone[0])


@pytest.mark.server
def test_server_with_two_ranks_and_two_api_servers(tmp_path: Path) -> None:
    """Answers equal the reference's. Counts add over API servers, but not over ranks. Each request opens a new
    connection, so both API servers get some; each answer and log line has its own figures."""
    flags = ["--served-model-name", "nano", "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8"]
    flags += ["--additional-config", json.dumps({"nld": {"mode": "linear"}}), "--tensor-parallel-size", "2"]
    flags += ["--api-server-count", "2", "--per-request-spec-decode-metrics", "summary"]
    unbound = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    # Five processes start, which takes a slow machine minutes.
    with Server(checkpoint_path(), flags, log=tmp_path / "log", environment=unbound, timeout=500) as server:

        def one(prompt: Prompt) -> Any:
            with connect(server) as client:
                return ask(client, prompt)

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(one, plain(16)))
        tokens = sum(answer.usage.completion_tokens for answer in answers)
        wait_for("all tokens are counted", lambda: metrics_of(server).get("nld:output_tokens_total") == tokens, 20)
        found = metrics_of(server)
    model = ReferenceModel.from_pretrained(checkpoint_path())
    exact = [generate(model, one.prompt_token_ids, mode="linear", max_new_tokens=96) for one in answers]
    assert [answer.choices[0].token_ids for answer in answers] == [one.tokens for one in exact]
    assert found["nld:requests_total"] == len(answers)
    # two ranks round sums differently, which may change a draft
    assert found["nld:forwards_total"] == pytest.approx(sum(one.nfe for one in exact), rel=0.05)
    assert found["nld:acceptance_length_count"] == found["vllm:spec_decode_num_drafts_total"]
    own = [answer.model_extra["metrics"]["speculative_decoding"] for answer in answers]
    assert sum(one["num_spec_steps"] for one in own) == found["nld:acceptance_length_count"]
    assert sum(one["num_accepted_draft_tokens"] for one in own) == found["nld:accepted_draft_tokens_total"]
    log = (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in re.findall(r"request (\{.*\})", log)]
    lengths = sorted(round(one["mean_acceptance_length"], 3) for one in own)
    assert sorted(line["acceptance_length"] for line in lines) == lengths
    assert {"0", "1"} == set(re.findall(r"ApiServer_(\d)", log))


def metrics_of(server: Server) -> dict[str, float]:
    """The samples of /metrics, summed over labels."""
    found: Counter[str] = Counter()
    for line in httpx.get(f"{server.url}/metrics").text.splitlines():
        if not line.startswith("#"):
            found[line.split("{")[0].split(" ")[0]] += float(line.split()[-1])
    return found


def assert_logits_equal_the_reference(llm: Any, model: ReferenceModel) -> None:
    """All logits of each token, in AR mode."""
    prompts = random_prompts(16, VOCAB, longest=200)
    outputs = greedy(llm, prompts, 16, logprobs=-1, extra_args={"nld_mode": "ar"})
    assert token_ids(outputs) == ar_tokens(model, prompts, 16)
    for prompt, output in zip(prompts, outputs, strict=True):
        expected = reference_logits(model, prompt, list(output.token_ids))
        torch.testing.assert_close(full_logits(output), expected, atol=1e-4, rtol=1e-4)


def assert_rounds_equal_the_reference(llm: Any, model: ReferenceModel) -> None:
    """The ranks share the adapter's A, and the reference has all of it; the rounds are equal."""
    prompts = random_prompts(6, VOCAB, longest=100, seed=11)
    before = metric(llm, "spec_decode_num_drafts")
    outputs = greedy(llm, prompts, TOKENS, extra_args={"nld_block_length": 8})
    options: dict[str, Any] = {"mode": "linear", "block_length": 8, "max_new_tokens": TOKENS, "ignore_eos": True}
    exact = [generate(model, prompt, **options) for prompt in prompts]
    assert token_ids(outputs) == [one.tokens for one in exact] == ar_tokens(model, prompts, TOKENS)
    assert metric(llm, "spec_decode_num_drafts") - before == sum(len(one.rounds) for one in exact)


def assert_drafts_are_those_of_training(llm: Any, model: ReferenceModel) -> None:
    """On both ranks, log-probabilities of drafts are those that an adapter's training computes."""
    (prompt,) = random_prompts(1, VOCAB, longest=60, seed=12)
    llm.collective_rpc("keep_drafts")
    (answer,) = token_ids(greedy(llm, [prompt], TOKENS, extra_args={"nld_block_length": BLOCK}))
    for passes in llm.collective_rpc("kept_drafts"):
        assert_drafts_are_trainings(model, prompt, answer, [torch.tensor(logits) for logits in passes])


def assert_a_certain_rank_goes_along(llm: Any, exact: list[list[int]]) -> None:
    """The second rank would fill a block in one pass, and then wait forever for the first one."""
    assert llm.collective_rpc("become_certain") == [False, True]
    denoised = [index for index, extra in enumerate(ASKED) if extra.get("nld_mode") == "diffusion"][:12]
    found = answers(llm, [PROMPTS[index] for index in denoised], [ASKED[index] for index in denoised])
    assert found == [exact[index] for index in denoised]


def assert_killed_worker_is_an_error(llm: Any) -> None:
    """Kill the second rank's process in the middle of a batch: nothing hangs, and the executor reports the failure.

    (A server then answers its running requests with an error and ends, see tests/deploy/test_ray_serve.py.)
    """
    first, second = actors("RayCpuWorker")
    assert first.ppid() != second.ppid(), "each rank has its own node"
    executor = llm.llm_engine.engine_core.engine_core.model_executor
    assert not executor.is_failed
    threading.Timer(0.3, second.kill).start()
    begin = time.monotonic()
    # a step was interrupted, found no workers, or lost them after vLLM had checked them and before it used their queues
    with pytest.raises((RuntimeError, AssertionError, IndexError)) as error:
        greedy(llm, PROMPTS * 20, TOKENS)
    assert error.type is not IndexError or error.traceback[-1].name == "collective_rpc"
    assert executor.is_failed
    assert time.monotonic() - begin < 60


@pytest.mark.skipif(SCALE <= 1, reason="half a minute of engine starts: set NLD_TEST_SCALE=2")
def test_two_pipeline_stages_equal_one(checkpoint: Path) -> None:
    """In AR mode, which does not draft."""
    options = {"additional_config": {"nld": {"mode": "ar"}}}
    found = []
    for executor in (None, "mp"):
        with ranks(checkpoint, executor, "pipeline", **options) as llm:
            found.append(token_ids(greedy(llm, PROMPTS, TOKENS)))
    assert found[0] == found[1]


def test_drafts_with_pipeline_stages_are_refused(checkpoint: Path) -> None:
    with (
        pytest.raises(ValueError, match="one pipeline stage: use --tensor-parallel-size"),
        ranks(checkpoint, "mp", "pipeline", **linear(32)),
    ):
        pass


def test_cluster_without_enough_workers_is_refused(ray_address: str) -> None:
    """Without this check vLLM would wait for half an hour."""
    from vllm_nld.compat.ray_cpu import check_cluster

    check_cluster(SimpleNamespace(world_size=2, ray_runtime_env=None))
    with pytest.raises(ValueError, match=r"offers 2 of the 3 vllm_cpu .*`ray start"):
        check_cluster(SimpleNamespace(world_size=3, ray_runtime_env=None))
