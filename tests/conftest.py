"""What test files share: the tiny random checkpoint and a server on nano; and the order of the files."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from tests import warm
from tests.tiny import write_tiny_checkpoint
from vllm_nld.nano import checkpoint_path
from vllm_nld.tools.server import Server

# A server takes 20 seconds of CPU time to start, so these files share `nano_server`, one after the other in a process.
# The last one stops it.
SHARING = ["evaluate/test_server.py", "serving/test_speculative_server.py", "deploy/test_lifecycle.py"]
KEY = "none"  # the server's API key: what clients send that need none
GRACE = 120  # its --shutdown-timeout: seconds for running requests to finish

# The longest files come first, so that processes that take one file at a time finish together. The first one mostly
# waits, so it runs beside the second one, whose ranks spin while they wait for each other and slow down other tests.
FIRST = [
    "metrics/test_server.py",
    "test_tensor_parallel.py",
    "serving/test_modes_server.py",
    "serving/test_no_flags.py",
    "spec_worker/test_sampling.py",
    "bench/test_gpu_check_engines.py",
    "tools/test_generator.py",
    "serving/test_server.py",
    "spec_worker/test_pairs.py",
    *SHARING,
    "spec_worker/test_lossless.py",
    "bench/test_modes.py",
    "spec_worker/test_vlm.py",
    "serving/test_vlm_server.py",
    "triton_cpu/test_rejection.py",
    "tools/test_demo.py",
    "spec_worker/test_features.py",
    "spec_worker/test_soak.py",
    "triton_cpu/test_logits.py",
    "triton_cpu/test_sampling.py",
    "bench/test_steps.py",
    "attention_backend/test_gpu.py",
    "compat/test_cpu.py",
    "spec_worker/test_compiled.py",
    "spec_worker/test_machine.py",
]
WARM = pytest.StashKey[warm.Warm]()
RANKS = {Path(__file__).parent / name: rank for rank, name in enumerate(FIRST)}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model's config, weights, draft adapter and tokenizer. Don't change it: tests share it."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), tokenizer=True)


@pytest.fixture(scope="session")
def nano_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """In linear mode by default, with an API key, and with time to finish requests when it is told to stop."""
    flags = ["--served-model-name", "nano", "bench", "nld:ar", "nld:diffusion", "--dtype", "float32", "--enforce-eager"]
    flags += ["--additional-config", json.dumps({"nld": {"mode": "linear"}}), "--max-num-seqs", "16"]
    flags += ["--max-model-len", "1024", "--per-request-spec-decode-metrics", "detailed"]
    flags += ["--shutdown-timeout", str(GRACE)]
    flags += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    log = tmp_path_factory.mktemp("nano_server") / "log"
    with Server(checkpoint_path(), flags, log=log, environment={"VLLM_API_KEY": KEY}) as server:
        yield server


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that would be spawned are forked from this one, which saves them the time to import vLLM."""
    monkeypatch.setitem(warm.CONTEXTS, "spawn", warm.CONTEXTS["fork"])
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # threads are bound where they start


def pytest_configure(config: pytest.Config) -> None:
    """With several test processes, their servers come from one that has imported vLLM; without GPUs, which a process
    that forks must not have used."""
    if getattr(config.option, "numprocesses", None) and not torch.cuda.is_available():
        config.stash[WARM] = warm.Warm()
    elif warm.ADDRESS in os.environ:
        inherited = Server.launch

        def launch(server: Server, output: IO[bytes]) -> Any:
            return warm.launch(server.command, output, server.environment) or inherited(server, output)

        Server.launch = launch  # type: ignore[method-assign]  # in this process only


def pytest_unconfigure(config: pytest.Config) -> None:
    if process := config.stash.get(WARM, None):
        process.close()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """--dist loadfile keeps the tests of a file in one process; here, those of files that share a server, too."""
    from xdist.scheduler import LoadFileScheduling

    class Sharing(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "nano_server" if file.removeprefix("tests/") in SHARING else file

    return Sharing(config, log) if config.option.dist == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first. Without a GPU, skip tests marked `gpu`."""
    items.sort(key=lambda item: RANKS.get(item.path, len(RANKS)))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
