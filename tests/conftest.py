"""The tiny random checkpoint that many tests share, and the order of test files."""

from pathlib import Path

import pytest
import torch

from tests.tiny import write_tiny_checkpoint

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
    "deploy/test_lifecycle.py",
    "evaluate/test_server.py",
    "spec_worker/test_lossless.py",
    "bench/test_modes.py",
    "serving/test_speculative_server.py",
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
RANKS = {Path(__file__).parent / name: rank for rank, name in enumerate(FIRST)}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model's config, weights, draft adapter and tokenizer. Don't change it: tests share it."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), tokenizer=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first. Without a GPU, skip tests marked `gpu`."""
    items.sort(key=lambda item: RANKS.get(item.path, len(RANKS)))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
