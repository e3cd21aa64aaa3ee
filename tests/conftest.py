"""Fixtures that several test folders use: tiny random checkpoints in the released layout."""

from pathlib import Path

import pytest
import torch

from tests.tiny import write_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config, weights, draft adapter and tokenizer of the tiny model. Read only: tests share it."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), tokenizer=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` on a machine without one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
