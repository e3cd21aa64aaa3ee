"""Tiny models for the reference tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny import write_tiny_checkpoint
from vllm_nld.reference import ReferenceModel


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny forwards run faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model(tiny_checkpoint: Path) -> ReferenceModel:
    """Vocabulary 320: drafts are almost never accepted."""
    return ReferenceModel.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="session")
def agreeable(tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    """Vocabulary 4, mask id 3: drafts are accepted often enough that every acceptance length occurs."""
    path = tmp_path_factory.mktemp("agreeable")
    write_tiny_checkpoint(path, vocab_size=4, mask_token_id=3, eos_token_id=2, seed=2)
    return ReferenceModel.from_pretrained(path)


@pytest.fixture(scope="session", params=["model", "agreeable"])
def any_model(request: pytest.FixtureRequest) -> ReferenceModel:
    """Parametrized over both models."""
    return request.getfixturevalue(request.param)
