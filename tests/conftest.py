"""Fixtures that several test folders use: tiny random checkpoints in the released layout."""

from pathlib import Path

import pytest

from tests.tiny import write_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config, weights, draft adapter and tokenizer of the tiny model. Read only: tests share it."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), tokenizer=True)
