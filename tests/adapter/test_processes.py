"""Two processes train the adapter that one would, with whole weights and with shares of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import write_tiny_checkpoint
from vllm_nld.adapter import memory
from vllm_nld.adapter.conversations import Conversation
from vllm_nld.adapter.trainer import STATE, order
from vllm_nld.roofline.shapes import SHAPES
from vllm_nld.tools.cli import main

TRAIN = ["--steps", "6", "--every", "3", "--rate", "0.01", "--device", "cpu"]


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Answers are of unequal length, so one process waits for the other's rounds."""
    model = write_tiny_checkpoint(tmp_path / "model", tokenizer=True)
    words = " ".join(f"t{40 + n}" for n in range(40))
    rows = [{"prompt": f"t{20 + n} t{30 + n}", "answer": words[: 8 + 4 * (n % 13)].strip()} for n in range(26)]
    prompts, heldout = tmp_path / "prompts.jsonl", tmp_path / "heldout.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows[4:]))  # five groups of four, and one of two
    heldout.write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    options = [str(model), "--prompts", str(prompts), "--heldout-prompts", str(heldout), *TRAIN]
    assert main(["adapter", "train", *options, "--group", "4", "--out", str(tmp_path / "one")]) == 0
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--module"]
    command = [*start, "tests.adapter.two_processes", str(tmp_path), "--", *options, "--group", "2"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.count("GPU memory for 2 conversations") == 2, "said once for each training"
    assert "weights split over 2 GPUs" in found.stdout
    one, *several = (torch.load(tmp_path / name / STATE, weights_only=True) for name in ("one", "whole", "shards"))
    for other in several:
        for a, b in zip(one["history"], other["history"], strict=True):
            assert a == pytest.approx(b, rel=1e-4)
        for a, b in zip(one["weights"], other["weights"], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_small_last_group_joins_the_one_before() -> None:
    data = [Conversation((1,), (2, 3))] * 17
    assert sorted(len(group) for group in order(data, 4, 0, 0)) == [1, 4, 4, 4, 4]
    groups = order(data, 4, 0, 0, least=2)
    assert sorted(len(group) for group in groups) == [4, 4, 4, 5]
    assert sorted(index for group in groups for index in group) == list(range(17))


def test_weights_are_split_over_several_processes_only(tiny_checkpoint: Path, capsys) -> None:  # type: ignore[no-untyped-def]  # pytest's fixture
    assert main(["adapter", "train", str(tiny_checkpoint), "--prompts", "x", "--out", "x", "--shard"]) == 1
    assert "start it with torchrun" in capsys.readouterr().err


def test_shares_need_less_memory_each() -> None:
    whole, quarter = (memory.estimate(SHAPES["14b"], 128, 16, 2048, 32, shares)["total"] for shares in (1, 4))
    assert quarter < whole - 0.5 * 2 * SHAPES["14b"].layers * SHAPES["14b"].layer_parameters
