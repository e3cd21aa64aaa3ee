"""Broken checkpoints and wrong flags end start-up with one sentence that names the file, tensor or flag and the fix."""

import json
import logging
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import write_json, write_tiny_checkpoint
from vllm_nld.compat import versions
from vllm_nld.serving import cpu, startup
from vllm_nld.tools.server import vllm_command


def start(path: Path, **options: Any) -> Any:
    """Build vLLM's full configuration for a checkpoint, as `vllm serve` does before it starts other processes."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    options = {"skip_tokenizer_init": True, "dtype": "float32"} | options
    return EngineArgs(model=str(path), **options).create_engine_config()


def change_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def change_config(path: Path, **fields: Any) -> None:
    raw = json.loads((path / "config.json").read_text())
    raw.update(fields)
    write_json(path / "config.json", {key: value for key, value in raw.items() if value is not None})


def drop_tensor(path: Path) -> None:
    change_weights(path, lambda tensors: tensors.pop("encoder.layers.1.mlp.up_proj.weight"))


def add_tensor(path: Path) -> None:
    change_weights(path, lambda tensors: tensors.update({"encoder.layers.7.mlp.up_proj.weight": torch.zeros(2, 2)}))


def misshape_tensor(path: Path) -> None:
    change_weights(path, lambda tensors: tensors.update({"encoder.norm.weight": torch.zeros(63)}))


def pickle_weights(path: Path) -> None:
    torch.save({}, path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def truncate_weights(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


BROKEN = {
    "missing tensor": (
        drop_tensor,
        r"lacks 1 tensor\(s\), the first encoder\.layers\.1\.mlp\.up_proj\.weight.*download",
    ),
    "extra tensor": (add_tensor, r"encoder\.layers\.7\.mlp\.up_proj\.weight.*num_hidden_layers"),
    "misshapen tensor": (misshape_tensor, r"encoder\.norm\.weight.*\[63\].*\[64\].*belong to different models"),
    "pickle weights": (pickle_weights, r"pytorch_model\.bin is a pickle file.*convert"),
    "damaged weights": (truncate_weights, r"model\.safetensors is damaged.*download"),
    "no RoPE base": (lambda path: change_config(path, rope_parameters=None), r"config\.json lacks rope_parameters"),
    "no mask token": (lambda path: change_config(path, mask_token_id=None), r"config\.json lacks mask_token_id"),
    "mask token outside": (lambda path: change_config(path, mask_token_id=320), r"mask_token_id \(320\).*320"),
    "Qwen3-based model": (
        lambda path: change_config(path, architectures=["DiffEncoderModel"]),
        r"DiffEncoderModel is a Qwen3-based.*NemotronLabsDiffusionModel",
    ),
    "vision-language model without a vision config": (
        lambda path: change_config(
            path, architectures=["NemotronLabsDiffusionVLMModel"], model_type="nemotron_labs_diffusion_vlm"
        ),
        r"config\.json lacks vision_config.*take config\.json from the model's own repository",
    ),
    "vision-language model with the text model's type": (
        lambda path: change_config(path, architectures=["NemotronLabsDiffusionVLMModel"]),
        r"architectures \[NemotronLabsDiffusionVLMModel\] and model_type 'nemotron_labs_diffusion' .* contradict",
    ),
    "text-to-image model": (
        lambda path: change_config(path, model_type="nemotron_labs_diffusion_image"),
        "is a text-to-image model, and vllm-nld serves language models",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    damage, message = BROKEN[name]
    path = write_tiny_checkpoint(tmp_path / "model")
    damage(path)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        start(path)


OVERRIDES: dict[str, tuple[dict[str, Any], str]] = {
    "block size that is text": ({"block_size": "x"}, r"block_size must be an integer .*--hf-overrides, not 'x'"),
    "block size of one": ({"block_size": 1}, r"block_size \(1\) must be at least 2"),
    "mask token outside": ({"mask_token_id": 5000}, r"mask_token_id \(5000\) must lie in"),
    "negative mask token": ({"mask_token_id": -1}, r"mask_token_id \(-1\) must lie in"),
    "no mask token": ({"mask_token_id": None}, "mask_token_id must be an integer .*not None"),
}


@pytest.mark.parametrize(("overrides", "message"), OVERRIDES.values(), ids=OVERRIDES)
def test_overrides_are_checked_like_the_config(overrides: dict[str, Any], message: str, tiny_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=message):
        start(tiny_checkpoint, hf_overrides=overrides)


@pytest.mark.parametrize("load_format", ["pt", "npcache"])
def test_pickle_load_formats_are_refused(tiny_checkpoint: Path, load_format: str) -> None:
    with pytest.raises(ValueError, match=f"--load-format {load_format} reads pickle.*safetensors"):
        start(tiny_checkpoint, load_format=load_format)


def test_untested_vllm_is_refused(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "TESTED_VLLM", ("0.1.0",))
    with pytest.raises(Exception, match=r"tested with vLLM 0\.1\.0, but .* is installed: pip install"):
        start(tiny_checkpoint)


def test_good_checkpoint_needs_no_remote_code_and_no_pickle(tiny_checkpoint: Path) -> None:
    config = start(tiny_checkpoint)
    assert config.model_config.architecture == "NemotronLabsDiffusionModel"
    assert config.load_config.load_format == "safetensors"
    assert not config.model_config.trust_remote_code
    assert config.model_config.hf_config.llama_4_scaling == {"original_max_position_embeddings": 64, "beta": 0.1}


def test_cpu_cache_size(tiny_checkpoint: Path) -> None:
    quarter = 2**28
    assert start(tiny_checkpoint).cache_config.kv_cache_memory_bytes == quarter, "a small model gets the minimum"
    assert start(tiny_checkpoint, kv_cache_memory_bytes=2**26).cache_config.kv_cache_memory_bytes == 2**26
    assert start(tiny_checkpoint, gpu_memory_utilization=0.5).cache_config.kv_cache_memory_bytes is None


def test_log_lines_go_where_vllm_shows_them(tiny_checkpoint: Path) -> None:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("vllm").addHandler(handler)
    try:
        start(tiny_checkpoint)
    finally:
        logging.getLogger("vllm").removeHandler(handler)
    for words, remedy in {
        "KV cache on the CPU": "--kv-cache-memory-bytes",
        "Context: 256 tokens, or as many as": "--max-model-len",
        "Blocks of 32 tokens, default mode auto": '{"nld": {"mode": "ar"}}',
    }.items():
        assert any(words in line and remedy in line for line in lines), words


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU needs no C++ compiler")
def test_eager_mode_without_a_compiler(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.config import CompilationMode

    assert start(tiny_checkpoint).compilation_config.mode != CompilationMode.NONE
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert start(tiny_checkpoint).compilation_config.mode == CompilationMode.NONE


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPUs compute bfloat16")
@pytest.mark.parametrize(
    ("capability", "dtype", "said"),
    [("AVX2", "bfloat16", True), ("AVX2", "float32", False), ("AVX512", "bfloat16", False)],
)
def test_names_the_faster_dtype(
    capability: str, dtype: str, said: bool, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(startup.logger, "warning", lambda text, *values: warnings.append(text % values))
    start(tiny_checkpoint, dtype=dtype)
    assert any("no AVX-512, so bfloat16 is slow" in line and "--dtype float32" in line for line in warnings) is said


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPUs have this by default")
def test_one_worker_runs_in_the_engines_process(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the user asks for a process, for cores, or for several ranks, or the machine has several memory nodes."""

    def executor(**options: Any) -> Any:
        return start(tiny_checkpoint, **options).parallel_config.distributed_executor_backend

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    monkeypatch.setattr(startup, "memory_nodes", lambda: [Path("node0")])
    assert executor() == startup.ONE_PROCESS
    assert executor(distributed_executor_backend="mp") == executor(tensor_parallel_size=2) == "mp"
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0-1")
    assert executor() == "mp"
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    assert executor() == startup.ONE_PROCESS
    monkeypatch.setattr(startup, "memory_nodes", lambda: [Path("node0"), Path("node1")])
    assert executor() == "mp"


@pytest.mark.server
def test_vllm_serve_prints_the_error(tmp_path: Path) -> None:
    """One sentence and no stack trace: test_preflight.py has the other mistakes."""
    path = write_tiny_checkpoint(tmp_path / "model")
    drop_tensor(path)
    result = subprocess.run([*vllm_command(), "serve", str(path)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    sentence = f"vllm serve: {path} lacks 1 tensor(s), the first encoder.layers.1.mlp.up_proj.weight: download "
    assert result.stderr.splitlines()[-1].startswith(sentence)
    assert "Traceback" not in result.stdout + result.stderr
