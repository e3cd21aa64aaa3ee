"""Training on a tiny model: it learns, it goes on where it was cut, and it says what is wrong."""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.adapter.test_walk import answered
from tests.tiny import write_tiny_checkpoint
from vllm_nld.adapter.conversations import Conversation
from vllm_nld.adapter.figures import Run
from vllm_nld.adapter.train import SHIPPED, model_of
from vllm_nld.adapter.trainer import ADAPTER, STATE, Settings, Trainer, measure, order, save_adapter
from vllm_nld.model.adapter import open_adapter
from vllm_nld.model.checkpoint import ADAPTER_DIR
from vllm_nld.reference import ReferenceModel
from vllm_nld.tools.cli import main

SETTINGS = Settings(steps=8, group=2, peak=5e-3, warmup=2, decay=4, every=2, patience=9, block_length=8)


def fresh(checkpoint: Path, seed: int = 0) -> ReferenceModel:
    torch.manual_seed(seed)
    model = ReferenceModel.from_pretrained(checkpoint, adapter=False)
    model.add_adapter(8, 16)
    return model


@pytest.fixture(scope="module")
def conversations(tiny_checkpoint: Path) -> list[Conversation]:
    return answered(fresh(tiny_checkpoint), 40)


def trainer(checkpoint: Path, data: list[Conversation], out: Path, settings: Settings = SETTINGS) -> Trainer:
    return Trainer(fresh(checkpoint), data, data[:2], settings, out)


def test_training_learns_the_answers_and_nothing_but_the_adapter_changes(
    tiny_checkpoint: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    settings = Settings(steps=60, group=4, peak=2e-2, warmup=5, decay=20, every=30, block_length=8)
    one = trainer(tiny_checkpoint, conversations, tmp_path, settings)
    before = {name: weight.clone() for name, weight in one.model.state_dict().items() if "lora" not in name}
    best = one.run()
    start = next(row["heldout"] for row in one.history if "heldout" in row)
    assert best > 1.3 * start
    losses = [row["loss"] for row in one.history if "loss" in row]
    assert len(losses) == 60
    after = one.model.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    assert all(row["agreement"] == 1 for row in one.history if "agreement" in row), "these are the model's own answers"
    written = ReferenceModel.from_pretrained(tiny_checkpoint, adapter=False)
    written.load_adapter(tmp_path / ADAPTER)
    open_adapter(tmp_path / ADAPTER).check(written.config)
    again = measure(written, conversations[:2], True, settings).acceptance_length
    assert again == pytest.approx(best, rel=0.1), "bf16 weights draft nearly the same"


def test_an_interrupted_run_ends_like_a_whole_one(
    tiny_checkpoint: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    whole = trainer(tiny_checkpoint, conversations, tmp_path / "whole")
    whole.run()
    trainer(tiny_checkpoint, conversations, tmp_path / "cut").run(until=5)  # its last state is of step 4
    resumed = trainer(tiny_checkpoint, conversations, tmp_path / "cut")
    resumed.load()
    assert resumed.step == 4
    resumed.run()
    assert resumed.history == whole.history
    assert all(torch.equal(a, b) for a, b in zip(resumed.weights, whole.weights, strict=True))


def test_targets_that_an_adapter_lacks_are_added_to_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = argparse.Namespace(seed=0, start=SHIPPED, rank=1, alpha=1.0, targets=["q_proj", "down_proj"])
    device = torch.device("cpu")
    model = model_of(tiny_checkpoint, options, device, torch.float32)
    shipped = ReferenceModel.from_pretrained(tiny_checkpoint)
    assert list(model.adapter_weights(torch.float32)[1]) == ["q_proj", "o_proj", "down_proj"]
    tokens = torch.tensor([[5, 100, 100]])
    assert torch.equal(model(tokens, lora=True), shipped(tokens, lora=True)), "new ones have no effect yet"
    save_adapter(model, tmp_path / ADAPTER)
    found = open_adapter(tmp_path / ADAPTER)
    assert (found.rank, found.targets) == (
        open_adapter(tiny_checkpoint / ADAPTER_DIR).rank,
        ("q_proj", "o_proj", "down_proj"),
    )
    model.load_adapter(tiny_checkpoint / ADAPTER_DIR)
    assert list(model.adapter_weights(torch.float32)[0]) == ["o_proj"], "a loaded adapter replaces the one before"


def test_a_run_that_gains_nothing_stops(
    tiny_checkpoint: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    settings = Settings(steps=50, group=2, peak=1e-12, every=1, patience=3, block_length=8)
    one = trainer(tiny_checkpoint, conversations, tmp_path, settings)
    one.run()
    assert one.step == 3


def test_weights_that_lose_a_category_are_not_kept(
    tiny_checkpoint: Path, conversations: list[Conversation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if they gain more elsewhere; and a run that goes on still knows what the start was like."""
    lengths = iter([(4, 4), (9, 3), (5, 4)])  # of two categories: at the start, and later

    def measured(*_: object) -> Run:
        a, b = next(lengths)
        return Run([[(a, a - 1, 7)] * 9, [(b, b - 1, 7)] * 9] * 10, ["a", "b"] * 10)

    monkeypatch.setattr("vllm_nld.adapter.trainer.measure", measured)
    heldout = [replace(conversations[0], category=name) for name in "ab" * 10]
    one = Trainer(fresh(tiny_checkpoint), conversations, heldout, SETTINGS, tmp_path)
    one.run(until=2)
    assert (one.best, one.stale) == (4, 1)
    resumed = Trainer(fresh(tiny_checkpoint), conversations, heldout, SETTINGS, tmp_path)
    resumed.load()
    resumed.run(until=4)
    assert (resumed.best, resumed.stale) == (4.5, 0)


def test_a_state_of_another_run_is_refused(
    tiny_checkpoint: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    trainer(tiny_checkpoint, conversations, tmp_path).run(until=2)
    with pytest.raises(ValueError, match=r"was saved with data \[4, 2, "):
        trainer(tiny_checkpoint, conversations[:3], tmp_path).load()
    with pytest.raises(ValueError, match="no run to resume"):
        trainer(tiny_checkpoint, conversations, tmp_path / "empty").load()


def test_a_full_disk_keeps_the_state_before(
    tiny_checkpoint: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    one = trainer(tiny_checkpoint, conversations, tmp_path)
    one.run(until=2)
    saved = (tmp_path / STATE).read_bytes()
    (tmp_path / f"{STATE}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="cannot write"):
        one.run(until=4)
    assert (tmp_path / STATE).read_bytes() == saved


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_has_every_conversation_once(conversations: list[Conversation], epoch: int) -> None:
    data = conversations * 5
    groups = order(data, 3, seed=1, epoch=epoch)
    assert sorted(index for group in groups for index in group) == list(range(20))
    assert groups == order(data, 3, seed=1, epoch=epoch) != order(data, 3, seed=1, epoch=epoch + 1)


@pytest.mark.parametrize("name", ["steps", "group", "every", "patience", "peak"])
def test_bad_settings_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be above 0, not 0"):
        Settings(**{name: 0})


# The commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with a tokenizer, and prompts with answers."""
    path = write_tiny_checkpoint(tmp_path_factory.mktemp("model"), tokenizer=True)
    rows = [
        {"prompt": f"t{20 + n} t{30 + n}", "answer": f"t{40 + n} t50 t51 t{60 + n} t52", "category": "ab"[n % 2]}
        for n in range(24)
    ]
    (path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_train_and_evaluate(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--prompts", str(folder / "prompts.jsonl"), "--group", "4"]
    out = tmp_path / "out"
    train = [
        "adapter",
        "train",
        str(folder),
        *data,
        "--out",
        str(out),
        "--steps",
        "12",
        "--every",
        "4",
        "--rate",
        "0.02",
    ]
    assert main([*train, "--start", "zero", "--rank", "8", "--alpha", "16"]) == 0
    said = capsys.readouterr().out
    assert "GPU memory for 4 conversations" in said and "Released models: 3b" in said
    assert f'"draft_lora": "{out / ADAPTER}"' in said and "let it write the answers itself" in said
    assert (out / "training.png").stat().st_size > 5000
    assert main(train) == 1 and "go on with --resume" in capsys.readouterr().err
    figures = out / "figures.json"
    evaluate = ["adapter", "evaluate", str(folder), *data, "--adapter", str(out / ADAPTER), "--json", str(figures)]
    assert main(evaluate) == 0
    found = json.loads(figures.read_text())
    assert list(found["runs"]) == ["none", "shipped", "new"] and found["against"] == "shipped"
    assert list(found["changes"]) == ["all", "a", "b"] or list(found["changes"]) == ["all", "b", "a"]
    assert found["runs"]["new"]["acceptance_length"] > found["runs"]["none"]["acceptance_length"]
    assert "Nowhere certainly worse by more than 2%" in capsys.readouterr().out


def test_a_step_in_bf16_is_nearly_one_in_fp32(folder: Path, tmp_path: Path) -> None:
    """With checkpointed activations, as on a GPU; the adapter and its optimizer stay in fp32."""
    losses = []
    for dtype in ("float32", "bfloat16"):
        command = ["adapter", "train", str(folder), "--prompts", str(folder / "prompts.jsonl"), "--group", "4"]
        command += ["--steps", "1", "--device", "cpu", "--dtype", dtype, "--out", str(tmp_path / dtype)]
        assert main(command) == 0
        state = torch.load(tmp_path / dtype / STATE, weights_only=True)
        assert {weight.dtype for weight in state["weights"]} == {torch.float32}
        losses += [row["loss"] for row in state["history"] if "loss" in row]
    assert losses[1] == pytest.approx(losses[0], rel=0.05) and losses[0] != losses[1]


def other_model(folder: Path, tmp_path: Path) -> list[str]:
    other = write_tiny_checkpoint(tmp_path / "other", hidden_size=32)
    return ["--start", str(other / "linear_spec_lora")]


def other_targets(folder: Path, tmp_path: Path) -> list[str]:
    shutil.copytree(folder / "linear_spec_lora", tmp_path / "wide")
    file = tmp_path / "wide" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": ["lm_head", "o_proj"]}))
    return ["--start", str(tmp_path / "wide")]


def full_disk(folder: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{STATE}.part").symlink_to("/dev/full")
    return []


BAD = {
    "no file": (lambda folder, tmp: ["--prompts", "/none"], "/none cannot be read"),
    "empty": (lambda folder, tmp: ["--prompts", write(tmp, "\n")], "has no prompts"),
    "no JSON": (lambda folder, tmp: ["--prompts", write(tmp, "{")], "line 1: Expecting"),
    "empty prompt": (lambda folder, tmp: ["--prompts", write(tmp, '{"prompt": " "}')], "line 1: the prompt is empty"),
    "unknown": (lambda folder, tmp: ["--prompts", write(tmp, '{"text": "x"}')], "'messages', 'turns' or 'prompt'"),
    "too long": (lambda folder, tmp: ["--max-length", "3"], "no prompt has an answer of at least two tokens"),
    "split": (lambda folder, tmp: ["--heldout", "0.000001"], "0 held out"),
    "no adapter": (
        lambda folder, tmp: ["--start", "/none"],
        "/none/adapter_config.json is not a readable adapter config",
    ),
    "other model": (other_model, "must have shape"),
    "rank": (lambda folder, tmp: ["--start", "zero", "--rank", "0"], "--rank 0"),
    "other targets": (other_targets, "has target_modules ['lm_head', 'o_proj']"),
    "full disk": (full_disk, "make room on the disk, and go on with --resume"),
    "resume": (lambda folder, tmp: ["--resume"], "there is no run to resume"),
}


def write(folder: Path, text: str) -> str:
    (folder / "prompts.jsonl").write_text(text)
    return str(folder / "prompts.jsonl")


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD)
def test_errors_are_one_line(words, message: str, folder: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]  # a table of functions
    command = [
        "adapter",
        "train",
        str(folder),
        "--prompts",
        str(folder / "prompts.jsonl"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*command, "--steps", "1", *words(folder, tmp_path)]) == 1
    said = capsys.readouterr().err
    assert message in said and said.startswith("vllm-nld adapter train: ") and "Traceback" not in said


def test_an_adapter_of_another_model_is_not_measured(folder: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]  # pytest's fixture
    _, other = other_model(folder, tmp_path)
    data = ["--prompts", str(folder / "prompts.jsonl")]
    assert main(["adapter", "evaluate", str(folder), *data, "--adapter", other]) == 2
    assert "must have shape" in capsys.readouterr().err


def test_known_answers_need_no_server(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    from vllm_nld.adapter import answers
    from vllm_nld.adapter.conversations import read, render

    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"t{20 + n}"}) + "\n" for n in range(20)))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    keys = [answers.key(render(tokenizer, row)) for row in read(prompts)]
    out = tmp_path / "out"
    out.mkdir()
    (out / "answers.jsonl").write_text("".join(json.dumps({"key": key, "answer": [40, 41, 11]}) + "\n" for key in keys))
    monkeypatch.setattr("vllm_nld.tools.server.Server", None)
    command = ["adapter", "train", str(folder), "--prompts", str(prompts), "--out", str(out), "--steps", "1"]
    assert main([*command, "--heldout", "0.3", "--group", "4"]) == 0
