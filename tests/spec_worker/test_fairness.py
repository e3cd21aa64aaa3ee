"""No request waits for long while others decode, however few tokens a step may have."""

import logging
from pathlib import Path
from typing import Any

import pytest

from tests.engines import engine
from tests.serving.test_startup import start
from tests.spec_worker.batches import BLOCK, Ask, longest_wait, stepped
from tests.spec_worker.conftest import allow_async, linear

STEPS = 60


def asks(modes: list[str], max_tokens: int = 100) -> list[Ask]:
    """Short prompts, so that a step has room for all of them, and long answers."""
    sampling = {"max_tokens": max_tokens}
    return [Ask([3 + index, 5], {"nld_mode": mode}, sampling=sampling) for index, mode in enumerate(modes)]


CASES: dict[str, tuple[int, list[str]]] = {  # tokens a step, modes
    "a block does not fit beside two": (BLOCK + 1, ["ar", "diffusion", "ar"]),
    "a block just fits": (BLOCK + 2, ["ar", "diffusion", "ar"]),
    "two blocks for six": (2 * BLOCK, ["diffusion", "linear"] * 3),
    "two blocks for six that are taken": (2 * BLOCK, ["diffusion"] * 6),
    "two blocks for all modes": (2 * BLOCK, ["ar", "linear", "diffusion"] * 2),
}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(("budget", "modes"), CASES.values(), ids=CASES)
def test_no_request_waits_for_long(
    budget: int, modes: list[str], asynchronous: bool, agreeable_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To its first token, and from one to the next, a request waits two turns at most, and two steps.

    A turn is as many steps as there are requests, since a step has room for one of them at least.
    """
    if asynchronous:
        allow_async(monkeypatch)
    options = linear(BLOCK) | {"max_num_batched_tokens": budget, "max_num_seqs": 6}
    with engine(agreeable_checkpoint, **options) as llm:
        assert llm.llm_engine.vllm_config.scheduler_config.async_scheduling == asynchronous
        given = stepped(llm, asks(modes), STEPS)
    waits = {f"{mode} {index}": longest_wait(given[index]) for index, mode in enumerate(modes)}
    assert max(waits.values()) <= 2 * len(modes) + 2, waits


@pytest.mark.parametrize("mode", ["linear", "diffusion"])
def test_a_budget_that_start_up_accepts_serves(mode: str, agreeable_checkpoint: Path) -> None:
    """A step with room for one block and no more: served, or refused by a sentence that names the flag."""
    options = linear(BLOCK) | {"max_num_batched_tokens": BLOCK, "max_num_seqs": 4}
    try:
        start(agreeable_checkpoint, **options)
    except ValueError as error:
        assert f"--max-num-batched-tokens {BLOCK}" in str(error)
        return
    with engine(agreeable_checkpoint, **options) as llm:
        (steps,) = stepped(llm, asks([mode], max_tokens=20), STEPS)
    assert longest_wait(steps) <= 2, steps


def warnings(caplog: pytest.LogCaptureFixture, path: Path, **options: Any) -> list[str]:
    """What start-up warns of that names both flags."""
    caplog.clear()
    logger = logging.getLogger("vllm.plugins.nld")
    logger.addHandler(caplog.handler)  # vLLM's loggers do not propagate
    try:
        start(path, **(linear(BLOCK) | options))
    finally:
        logger.removeHandler(caplog.handler)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [text for text in said if "max-num-seqs" in text and "max-num-batched-tokens" in text]


def test_start_up_warns_of_more_blocks_than_a_step_has_room_for(
    agreeable_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And names both numbers; with room for all, or without blocks, it says nothing."""
    (text,) = warnings(caplog, agreeable_checkpoint, max_num_seqs=16, max_num_batched_tokens=16 * BLOCK - 1)
    assert "16" in text and str(16 * BLOCK - 1) in text
    assert not warnings(caplog, agreeable_checkpoint, max_num_seqs=16, max_num_batched_tokens=17 * BLOCK)
    ar = {"additional_config": {"nld": {"mode": "ar"}}}
    assert not warnings(caplog, agreeable_checkpoint, max_num_seqs=16, max_num_batched_tokens=16, **ar)
