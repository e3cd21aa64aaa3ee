"""What vLLM's CPU build lacks. What needs more than this machine is shown elsewhere:

request_amx_tiles           a CPU with AMX in bf16     here: tiles are asked for, if Linux runs on one
place_cpu_workers_on_ray    a cluster of two nodes     tests/test_tensor_parallel.py, with Ray as the executor
"""

import importlib.util
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.compat.conftest import without
from tests.engines import engine, greedy
from tests.metrics.conftest import Counted
from tests.spec_worker.conftest import write_agreeable_checkpoint
from vllm_nld.compat import cpu
from vllm_nld.compat.patcher import Patcher
from vllm_nld.compat.register import states
from vllm_nld.triton_cpu import dispatch, is_cpu_build

pytestmark = pytest.mark.skipif(not is_cpu_build(), reason="these patches are for vLLM's CPU build")
PROMPT = [5, 20, 40]


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_without_import_pixtral_without_torchvision_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "transformers.models.pixtral.image_processing_pixtral"
    importlib.import_module("transformers.models.pixtral")
    monkeypatch.delitem(sys.modules, name, raising=False)
    with (
        without(cpu.import_pixtral_without_torchvision),
        pytest.raises(ModuleNotFoundError, match="No module named 'torchvision'"),
    ):
        importlib.import_module(name)
    assert importlib.import_module(name)._num_image_tokens((8, 12), (4, 4)) == (2, 3)


@pytest.mark.parametrize("granted", [True, False])
def test_request_amx_tiles_asks_and_warns(
    granted: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: asked.append(1) or granted)
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    patcher = Patcher([cpu.request_amx_tiles])
    patcher.apply()
    patcher.apply()
    assert asked == [1] and str(patcher.states()[0]) == "in force"
    assert ("grants no AMX tiles" in caplog.text) is not granted


def test_without_amx_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: pytest.fail("asked"))
    with without(cpu.request_amx_tiles):
        pass
    assert str(next(state for state in states() if state.patch is cpu.request_amx_tiles)).endswith("no AMX")


PERMITTED = """
import ctypes, sys
from vllm_nld.compat import cpu
from vllm_nld.compat.patcher import Patcher
def tiles():
    mask = ctypes.c_uint64()
    assert ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(mask)) == 0  # arch_prctl(ARCH_GET_XCOMP_PERM)
    return bool(mask.value >> 18 & 1)
before = tiles()
Patcher([cpu.request_amx_tiles]).apply()
print(before, tiles())
"""


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="needs a CPU with AMX")
def test_without_request_amx_tiles_linux_permits_none() -> None:
    result = subprocess.run([sys.executable, "-c", PERMITTED], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.split() == ["False", "True"]


def test_without_use_native_kernels_triton_interprets_every_launch(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.interpreter import GridExecutor

    interpreted: list[str] = []
    inherited = GridExecutor.__call__

    def call(self: Any, *args: Any, **options: Any) -> Any:
        interpreted.append(self.fn.__name__)
        return inherited(self, *args, **options)

    monkeypatch.setattr(GridExecutor, "__call__", call)
    with without(cpu.use_native_kernels):
        expected = greedy(counted.llm, [PROMPT], 4)[0].token_ids
        assert {"_prepare_pos_seq_lens_kernel", "_gather_block_tables_kernel"} <= set(interpreted)
        assert len(interpreted) > 4 * 8
    interpreted.clear()
    assert greedy(counted.llm, [PROMPT], 4)[0].token_ids == expected
    assert not interpreted and "native" in dispatch.launched().values()


def test_without_reuse_compiled_models_each_start_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each compiling is announced, except without the patch that does it."""
    from vllm.compilation.counter import compilation_counter as counter

    caplog.set_level(logging.INFO, "vllm")
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    model = write_agreeable_checkpoint(tmp_path / "model", num_hidden_layers=1)

    def start() -> tuple[int, int]:
        """Models compiled, and loaded."""
        before = counter.num_aot_compiles, counter.num_aot_artifacts_loaded
        with engine(model, enforce_eager=False, additional_config={"nld": {"mode": "ar"}}) as llm:
            greedy(llm, [PROMPT], 2)
        return counter.num_aot_compiles - before[0], counter.num_aot_artifacts_loaded - before[1]

    with without(cpu.reuse_compiled_models):
        assert start() == (1, 0)
        assert caplog.text.count("Compiling the model's forward for this CPU") == 1
    with without(cpu.reuse_compiled_models, cpu.announce_compiling):
        assert start() == (1, 0)
    assert start() == (0, 1)
    for words in "Compiling the model's forward for this CPU", "Compiled the model's forward":
        assert caplog.text.count(words) == 1


def test_long_compiling_shows_progress(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vllm")
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    with cpu.compiling("forward of drafts", period=0.01):
        while "Compiling the forward of drafts: 0 s so far." not in caplog.text:
            time.sleep(0.01)


def test_without_place_cpu_workers_on_ray_vllm_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cluster that has no room for the worker, as that takes the least time to see."""
    import ray
    from vllm.config import ParallelConfig
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.executor import ray_executor_v2

    monkeypatch.setattr(CpuPlatform, "ray_device_key", "")  # restored to this: the patch sets both when it is used
    monkeypatch.setattr(ray_executor_v2, "RayWorkerProc", ray_executor_v2.RayWorkerProc)
    ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    try:
        with (
            without(cpu.place_cpu_workers_on_ray),
            pytest.raises(ValueError, match="current platform cpu does not support ray"),
        ):
            ray_executor_v2.initialize_ray_cluster(ParallelConfig())
        with pytest.raises(ValueError, match="offers 0 of the 1 vllm_cpu"):
            ray_executor_v2.initialize_ray_cluster(ParallelConfig())
        assert ray_executor_v2.RayWorkerProc.__name__ == "RayCpuWorker"
    finally:
        ray.shutdown()
