"""vLLM with all patches but some, and an engine whose parts a test can look at.

Methods are looked up on their class at each call, so most patches can be taken away from an engine that runs.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.metrics.conftest import Counted, counting
from tests.spec_worker.conftest import write_agreeable_checkpoint
from vllm_nld.compat.patch import Patch
from vllm_nld.compat.patcher import Patcher
from vllm_nld.compat.register import PATCHER, PATCHES

BLOCK, KV_BLOCK = 8, 32  # tokens of a draft block, and of a KV block


@contextlib.contextmanager
def without(*absent: Patch) -> Iterator[None]:
    """In this process, vLLM with every patch of the register but these."""
    PATCHER.undo()
    others = Patcher(patch for patch in PATCHES if patch not in absent)
    others.apply()
    try:
        yield
    finally:
        others.undo()
        PATCHER.apply()


@pytest.fixture(scope="session", autouse=True)
def patched() -> None:
    """As in a process that vLLM has started. vLLM loads plugins once, so an engine does not bring patches back."""
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    PATCHER.apply()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drafts are accepted now and then, and answers are words. Read only: tests share it."""
    return write_agreeable_checkpoint(tmp_path_factory.mktemp("patched"), tokenizer=True)


def options(**settings: Any) -> dict[str, Any]:
    """Of an engine with linear and diffusion mode."""
    nld = {"mode": "linear", "block_length": BLOCK} | settings
    return {"additional_config": {"nld": nld}, "block_size": KV_BLOCK, "skip_tokenizer_init": False}


@pytest.fixture(scope="module")
def shared(checkpoint: Path) -> Iterator[Counted]:
    """An engine whose statistics go to our stat logger. Tests with an engine of their own come last in a file: when
    that one ends, so does vLLM's parallel state in this process.
    """
    with counting(checkpoint, **options()) as counted:
        yield counted


@pytest.fixture
def counted(shared: Counted) -> Counted:
    """The shared engine, with every counter at 0."""
    return Counted(shared.llm)


def runner(llm: Any) -> Any:
    """The model runner of an engine in this process."""
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
