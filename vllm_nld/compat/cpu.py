"""What vLLM's CPU build lacks. None of it is needed with the GPU build."""

import contextlib
import importlib.util
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_nld.compat.patch import Change, patch
from vllm_nld.triton_cpu import is_cpu_build

logger = logging.getLogger("vllm.plugins.nld")  # under "vllm", where its log level and format apply


def gpu_build() -> str:
    """Why none of this is needed: vLLM's GPU build is installed. "" with the CPU build."""
    return "" if is_cpu_build() else "vLLM's GPU build is installed"


def no_amx() -> str:
    """Why AMX tiles need not be requested."""
    import torch

    return gpu_build() or ("" if torch.cpu._is_amx_tile_supported() else "this CPU has no AMX")


def no_triton() -> str:
    """Why there are no kernels to run natively."""
    if why := gpu_build():
        return why
    from vllm.triton_utils import HAS_TRITON

    return "" if HAS_TRITON else "vLLM finds no Triton"


def has_torchvision() -> str:
    """Why Pixtral's image processing can be imported as it is."""
    if why := gpu_build():
        return why
    return "" if importlib.util.find_spec("torchvision") is None else "torchvision is installed"


@patch("transformers.models.pixtral", not_needed=has_torchvision)
def import_pixtral_without_torchvision(module: Any) -> Iterator[Change]:
    """Let vLLM's Pixtral model be imported without torchvision.

    Symptom: a vision-language model ends start-up with "No module named 'torchvision'".
    Cause: vLLM takes one function from transformers' image processing for torchvision, of which no build matches the
    CPU build's torch. Its twin for Pillow has the same function. Neither is called for our models.
    Delete when: vLLM's CPU build can be installed with torchvision.
    """
    yield module, "__path__", [str(Path(__file__).parent / "no_torchvision"), *module.__path__]


@patch(not_needed=no_amx)
def request_amx_tiles() -> Iterator[Change]:
    """Ask the operating system to let this process use AMX tiles.

    Symptom: serving in bf16 on a CPU with AMX dies with SIGILL ("Illegal instruction") in `cpu_attn_amx.hpp`.
    Cause: Linux grants tiles to a process that asks for them. oneDNN asks before its first large bf16 product, but
    vLLM's attention kernel does not, and a small model without a warm-up run gets there first.
    Delete when: `CPUWorker.init_device` asks.
    """
    import torch

    if not torch.cpu._init_amx():
        logger.warning("The operating system grants no AMX tiles: bf16 attention may end with SIGILL; use float32.")
    yield from ()


@patch(not_needed=no_triton)
def use_native_kernels() -> Iterator[Change]:
    """Run Model Runner V2's kernels as machine code on the CPU.

    Symptom: each of a step's ten to fifteen kernels takes 1-3 ms, so decoding is ten times slower than the model.
    Cause: vLLM's CPU build leaves them to a Triton "cpu" backend. None is published, and ours has Triton interpret
    them. vLLM's own seam, `register_kernels`, does not pass the grid to a replacement, and for some kernels only the
    grid says how much to do.
    Delete when: vLLM's CPU build has native versions of the kernels in `vllm_nld.triton_cpu.registry`.
    """
    from triton.runtime.interpreter import InterpretedFunction

    from vllm_nld.triton_cpu import dispatch, interpreter

    interpreter.repair()
    yield InterpretedFunction, "__getitem__", dispatch.route


@patch("torch._dynamo.aot_compile_types", not_needed=gpu_build)
def reuse_compiled_models(module: Any) -> Iterator[Change]:
    """Load what torch.compile made at an earlier start.

    Symptom: each start on a CPU compiles the model again, for ten seconds or more, "due to a load failure".
    Cause: `_try_load_aot_compiled_fn` calls `finalize_loading`, which only functions of vLLM's own compile backend
    have. On CPUs the backend is plain Inductor, which has nothing to finalize.
    Delete when: vLLM checks whether there is anything to finalize.
    """
    yield module.BundledAOTAutogradSerializableCallable, "finalize_loading", lambda self, vllm_config: None


@contextlib.contextmanager
def compiling(pathway: str, period: float = 15) -> Iterator[None]:
    """Log that a forward is being compiled, now, every `period` seconds, and at the end."""
    begin, done = time.monotonic(), threading.Event()

    def tell() -> None:
        while not done.wait(period):
            logger.info("Compiling the %s: %.0f s so far.", pathway, time.monotonic() - begin)

    logger.info(
        "Compiling the %s for this CPU: seconds for a small model, minutes for billions of parameters. Later starts "
        "load it; --enforce-eager does without.",
        pathway,
    )
    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
    logger.info("Compiled the %s in %.0f s.", pathway, time.monotonic() - begin)


@patch("vllm.compilation.decorators", not_needed=gpu_build)
def announce_compiling(module: Any) -> Iterator[Change]:
    """Say on the CPU what is being compiled.

    Symptom: the first start of a model with billions of parameters says nothing for minutes.
    Cause: `monitor_torch_compile` speaks only in the compilation mode of GPUs. This patch applies to every model.
    Delete when: it speaks in every mode.
    """
    inherited = module.monitor_torch_compile

    @contextlib.contextmanager
    def monitor_torch_compile(*args: Any, announce_start: bool = True, **options: Any) -> Iterator[None]:
        name = "forward of drafts" if options.get("tag") == "draft_pathway" else "model's forward"
        speaks = compiling(name) if announce_start else contextlib.nullcontext()  # an attempt to load says nothing
        with speaks, inherited(*args, announce_start=announce_start, **options):
            yield

    yield module, "monitor_torch_compile", monitor_torch_compile


@patch("vllm.v1.executor.ray_executor_v2", not_needed=gpu_build)
def place_cpu_workers_on_ray(module: Any) -> Iterator[Change]:
    """Let Ray place CPU workers.

    Symptom: `--distributed-executor-backend ray` ends with "current platform cpu does not support ray".
    Cause: the CPU platform names no Ray resource, and a worker's actor is asked for accelerator ids, which Ray has only
    for devices it knows.
    Delete when: `CpuPlatform.ray_device_key` is set.
    """
    inherited = module.initialize_ray_cluster

    def initialize_ray_cluster(parallel_config: Any, *args: Any, **options: Any) -> None:
        from vllm.platforms.cpu import CpuPlatform

        from vllm_nld.compat import ray_cpu

        CpuPlatform.ray_device_key = ray_cpu.RESOURCE
        module.RayWorkerProc = ray_cpu.RayCpuWorker
        ray_cpu.check_cluster(parallel_config)
        inherited(parallel_config, *args, **options)

    yield module, "initialize_ray_cluster", initialize_ray_cluster
