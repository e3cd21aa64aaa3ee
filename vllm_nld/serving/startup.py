"""Checks and defaults between `vllm serve` and the first loaded tensor.

vLLM calls these hooks while it builds its configuration, in the API server process. So an error is the last line that
the user sees, and not buried in a worker's log.
"""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from vllm.logger import init_logger
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from vllm_nld.compat.versions import check_vllm_version
from vllm_nld.model.checkpoint import CheckpointError, check_tensors, read_config, read_shapes
from vllm_nld.model.configs import VLM_ARCHITECTURE, NemotronLabsDiffusionVLMConfig
from vllm_nld.serving.configure import configure
from vllm_nld.serving.cpu import emulates_half_precision
from vllm_nld.serving.speculation import draft_adapter, drafts_for_itself

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

logger = init_logger("vllm.plugins.nld")  # under "vllm", where its log level and format apply

# "uni" as a class, because the CPU platform replaces the name by "mp".
ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
PICKLE_LOAD_FORMATS = ("pt", "npcache")


def refuse(architecture: str, why: str) -> type[VerifyAndUpdateConfig]:
    """A hook that ends start-up with one sentence, for an architecture that is not served."""

    class Refused(VerifyAndUpdateConfig):
        @staticmethod
        def verify_and_update_model_config(model_config: "ModelConfig") -> None:
            raise ValueError(f"{model_config.model}: {architecture} {why}")

    return Refused


class ServedModel(VerifyAndUpdateConfig):
    """The hook for the architectures that are served."""

    @staticmethod
    def verify_and_update_model_config(model_config: "ModelConfig") -> None:
        """Raise RuntimeError for an untested vLLM, CheckpointError for a local checkpoint that cannot be served."""
        check_vllm_version()
        config = model_config.hf_config
        if (model_config.architecture == VLM_ARCHITECTURE) != isinstance(config, NemotronLabsDiffusionVLMConfig):
            raise CheckpointError(
                f"{model_config.model}: architectures [{model_config.architecture}] and model_type "
                f"{config.model_type!r} in config.json contradict each other",
                "take config.json from the model's own repository",
            )
        config.check()
        path = Path(model_config.model)
        if path.is_dir():
            check_local(path, model_config)

    @staticmethod
    def verify_and_update_config(vllm_config: "VllmConfig") -> None:
        """Raise CheckpointError for a load format that would unpickle; set defaults that the user left open."""
        load_config = vllm_config.load_config
        if load_config.load_format in PICKLE_LOAD_FORMATS:
            raise CheckpointError(
                f"--load-format {load_config.load_format} reads pickle files, which can run code",
                "use safetensors weights and leave --load-format at auto",
            )
        if load_config.load_format == "auto":
            load_config.load_format = "safetensors"  # auto would fall back to pickle files if there are no others
        if vllm_config.model_config.architecture == VLM_ARCHITECTURE:
            from vllm_nld.model import image_connector

            image_connector.use()
        size_cpu_cache(vllm_config)
        warn_of_emulation(vllm_config.model_config)
        run_in_engine_process(vllm_config)
        fit_context(vllm_config.model_config)
        run_eagerly_without_compiler(vllm_config)
        configure(vllm_config)
        if drafts_for_itself(vllm_config) and (adapter := draft_adapter(vllm_config)):
            adapter.check(vllm_config.model_config.hf_config)


def check_local(path: Path, model_config: "ModelConfig") -> None:
    """Check a checkpoint folder from its headers, before any process starts for it."""
    read_config(path)
    check_tensors(
        model_config.hf_config,
        read_shapes(path),
        where=path,
        quantized=getattr(model_config.hf_config, "quantization_config", None) is not None,
    )


def fit_context(model_config: "ModelConfig") -> None:
    """Unless the user set a context, let vLLM cut the model's to what the KV cache has room for.

    The released models' 262,144 tokens need more memory than many GPUs have.
    """
    if model_config.original_max_model_len is None:
        model_config.original_max_model_len = -1  # as --max-model-len auto
        logger.info(
            "Context: %d tokens, or as many as the KV cache has room for; --max-model-len sets it.",
            model_config.max_model_len,
        )


def size_cpu_cache(vllm_config: "VllmConfig") -> None:
    """On the CPU, reserve what max_num_seqs requests of max_model_len need, unless the user set a size.

    vLLM's default is 92 % of the machine's memory, so it would not start next to other processes, and would take
    gigabytes for a small model.
    """
    from vllm.config import CacheConfig
    from vllm.platforms import current_platform

    cache = vllm_config.cache_config
    chosen = cache.kv_cache_memory_bytes is not None
    chosen |= cache.gpu_memory_utilization != CacheConfig().gpu_memory_utilization
    if not current_platform.is_cpu() or chosen or os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        return
    from vllm.utils.mem_constants import GiB_bytes

    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    token_bytes = 2 * model.get_num_layers(parallel) * model.get_num_kv_heads(parallel) * model.get_head_size()
    token_bytes *= model.dtype.itemsize
    wanted = token_bytes * model.max_model_len * vllm_config.scheduler_config.max_num_seqs
    cache.kv_cache_memory_bytes = min(max(wanted, GiB_bytes // 4), 4 * GiB_bytes)
    logger.info(
        "KV cache on the CPU: %.2f GiB, for max_num_seqs x max_model_len, at most 4 GiB; vLLM will call it explicitly "
        "set. Change it by --kv-cache-memory-bytes.",
        cache.kv_cache_memory_bytes / GiB_bytes,
    )


def warn_of_emulation(model_config: "ModelConfig") -> None:
    """Name the dtype that is faster on a CPU that emulates the model's. It takes twice the memory: the user chooses."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu() and model_config.dtype.itemsize < 4 and emulates_half_precision():
        name = str(model_config.dtype).removeprefix("torch.")
        logger.warning(
            "This CPU has no AVX-512, so %s is slow, above all for blocks of several tokens: --dtype float32 is "
            "several times as fast, and takes twice the memory.",
            name,
        )


def run_in_engine_process(vllm_config: "VllmConfig") -> None:
    """On a CPU, run a single worker in the engine's process, unless the user asks for another executor or for cores.

    vLLM gives it a process of its own to bind its threads to cores. That takes half a minute longer to start, and
    threads that are bound wait for their cores whenever something else runs on the machine.
    """
    from vllm.platforms import current_platform

    parallel = vllm_config.parallel_config
    alone = parallel.distributed_executor_backend == "uni" and parallel.data_parallel_size == 1
    bound = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "nobind") != "nobind"
    if current_platform.is_cpu() and alone and not bound and len(memory_nodes()) <= 1:
        parallel.distributed_executor_backend = ONE_PROCESS  # type: ignore[assignment]  # vLLM takes class paths too
        logger.info(
            "The worker runs in the engine's process, with threads that are not bound to cores. "
            "--distributed-executor-backend mp or VLLM_CPU_OMP_THREADS_BIND change that."
        )


def memory_nodes() -> list[Path]:
    """The NUMA nodes of this machine: on several, threads must be bound to the one with their memory."""
    return list(Path("/sys/devices/system/node").glob("node[0-9]*"))


def run_eagerly_without_compiler(vllm_config: "VllmConfig") -> None:
    """On a CPU without a C++ compiler, turn off torch.compile, which would end start-up with a stack trace."""
    from vllm.platforms import current_platform

    compiler = os.environ.get("CXX", "g++")
    if current_platform.is_cpu() and not vllm_config.model_config.enforce_eager and shutil.which(compiler) is None:
        vllm_config.model_config.enforce_eager = True
        logger.warning("No C++ compiler (%s) for torch.compile: running eagerly, as with --enforce-eager.", compiler)
