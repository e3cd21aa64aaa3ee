"""The draft adapter on disk: it is found and read, or refused with an error that names the file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import ADAPTER_ALPHA, ADAPTER_RANK, VLM, tiny_adapter, tiny_config, write_json, write_tiny_checkpoint
from vllm_nld.model import draft_lora
from vllm_nld.model.adapter import TARGETS, find_adapter, write_adapter
from vllm_nld.model.checkpoint import ADAPTER_DIR, CheckpointError


def change_settings(path: Path, **fields: object) -> None:
    file = path / ADAPTER_DIR / "adapter_config.json"
    write_json(file, json.loads(file.read_text()) | fields)


def change_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = path / ADAPTER_DIR / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_own_adapter_is_found(tiny_checkpoint: Path) -> None:
    adapter = find_adapter(str(tiny_checkpoint), None, "auto")
    assert adapter is not None
    adapter.check(tiny_config())
    assert (adapter.rank, adapter.scale) == (ADAPTER_RANK, ADAPTER_ALPHA / ADAPTER_RANK)
    down, up = adapter.read(1, "o_proj")
    expected = tiny_adapter(tiny_config())
    stem = "base_model.model.encoder.layers.1.self_attn.o_proj"
    assert torch.equal(down, expected[f"{stem}.lora_A.weight"])
    assert torch.equal(up, expected[f"{stem}.lora_B.weight"])


def test_no_adapter(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert find_adapter(str(tiny_checkpoint), None, "off") is None
    assert find_adapter(str(write_tiny_checkpoint(tmp_path, adapter=False)), None, "auto") is None


def test_adapter_in_another_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = write_tiny_checkpoint(tmp_path, adapter=False)
    folder = tiny_checkpoint / ADAPTER_DIR
    adapter = find_adapter(str(model), None, str(folder))
    assert adapter is not None and adapter.path == folder


def test_only_the_adapter_of_a_repository_is_downloaded(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def snapshot_download(repository: str, **options: object) -> str:
        asked[repository] = options
        return str(tiny_checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    adapter = find_adapter("someone/some-model", "main", "auto")
    assert adapter is not None
    assert asked == {"someone/some-model": {"revision": "main", "allow_patterns": [f"{ADAPTER_DIR}/*"]}}


def test_another_checkpoint_may_lend_its_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a folder or a repository. A vision-language model takes a text model's, whose decoder has the same shapes."""
    text = write_tiny_checkpoint(tmp_path / "text")
    vision = write_tiny_checkpoint(tmp_path / "vision", adapter=False, **VLM)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(tmp_path / name.partition("/")[2]))
    assert find_adapter(str(vision), None, "auto") is None
    for named in (text, text / ADAPTER_DIR, "someone/text"):
        adapter = find_adapter(str(vision), None, str(named))
        assert adapter is not None and adapter.path == text / ADAPTER_DIR
        adapter.check(tiny_config(**VLM))
    with pytest.raises(CheckpointError, match="adapter_config.json is not a readable adapter config"):
        find_adapter(str(vision), None, "someone/vision")
    with pytest.raises(CheckpointError, match=r"o_proj.*must have shape \[4, 64\], found \[4, 128\]"):
        adapter.check(tiny_config(**VLM | {"head_dim": 16}))


def test_a_repository_that_is_out_of_reach_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match=r"'a/b' is no folder and cannot be downloaded \(no network\)"):
        find_adapter("model", None, "a/b")


def test_rank_stabilized_scale(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path)
    change_settings(path, use_rslora=True)
    adapter = find_adapter(str(path), None, "auto")
    assert adapter is not None and adapter.scale == ADAPTER_ALPHA / 2


@pytest.mark.parametrize("alpha", [0.4, 2**0.5, 16.0])
def test_a_written_scale_is_the_one_that_is_read(alpha: float, tmp_path: Path) -> None:
    path, config = write_tiny_checkpoint(tmp_path), tiny_config()
    sizes = (2, config.num_attention_heads * config.head_dim), (config.hidden_size, 2)
    layers = [{"o_proj": (torch.ones(sizes[0]), torch.ones(sizes[1]))} for _ in range(config.num_hidden_layers)]
    write_adapter(path / ADAPTER_DIR, alpha, layers)
    adapter = find_adapter(str(path), None, "auto")
    assert adapter is not None and adapter.scale == pytest.approx(alpha / 2, abs=1e-6)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "other target": (lambda path: change_settings(path, target_modules=["head"]), r"target_modules \['head'\]"),
    "no target": (lambda path: change_settings(path, target_modules=[]), r"target_modules \[\]"),
    "missing target": (
        lambda path: change_settings(path, target_modules=["q_proj", "o_proj"]),
        r"q_proj.*lora_A.*must have shape \[4, 64\], found nothing",
    ),
    "no rank": (lambda path: change_settings(path, r=None), r"adapter_config\.json is not a readable"),
    "no scale": (lambda path: change_settings(path, lora_alpha=0), r"scale 0\.0: no effect"),
    "DoRA": (lambda path: change_settings(path, use_dora=True), r"asks for DoRA"),
    "pattern": (lambda path: change_settings(path, alpha_pattern={"o_proj": 8}), r"rank_pattern or alpha_pattern"),
    "other rank": (
        lambda path: change_settings(path, r=8),
        r"layers\.0.*lora_A.*must have shape \[8, 128\], found \[4",
    ),
    "missing layer": (
        lambda path: change_weights(path, lambda t: t.pop(min(name for name in t if "layers.1" in name))),
        r"layers\.1.*lora_A\.weight.*found nothing",
    ),
    "no weights": (
        lambda path: (path / ADAPTER_DIR / "adapter_model.safetensors").unlink(),
        r"is not a readable draft",
    ),
    "empty folder": (lambda path: (path / ADAPTER_DIR / "adapter_config.json").unlink(), r"adapter_config\.json"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_adapter_is_refused(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path)
    damage(path)
    with pytest.raises(ValueError, match=message):
        adapter = find_adapter(str(path), None, "auto")
        assert adapter is not None
        adapter.check(tiny_config())


def test_ranks_share_an_adapter_as_they_share_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four ranks and two heads of keys and values, so that each head is on two ranks."""
    adapter = find_adapter(str(write_tiny_checkpoint(tmp_path, targets=tuple(TARGETS))), None, "auto")
    assert adapter is not None
    monkeypatch.setattr(draft_lora, "get_tensor_model_parallel_world_size", lambda: 4)
    adapted = draft_lora.DraftAdapter(adapter, tiny_config(), 8, torch.device("cpu"), torch.float32)
    for target in TARGETS:
        downs, ups = [], []
        for rank in range(4):
            monkeypatch.setattr(draft_lora, "get_tensor_model_parallel_rank", lambda rank=rank: rank)
            down, up = adapted._share(1, target)
            downs.append(down)
            ups.append(up)
        whole_down, whole_up = adapter.read(1, target)
        if target in draft_lora.ROW_PARALLEL:
            assert torch.equal(torch.cat(downs, dim=1), whole_down) and all(torch.equal(up, whole_up) for up in ups)
        else:
            step = 2 if target in ("k_proj", "v_proj") else 1
            assert torch.equal(torch.cat(ups[::step]), whole_up) and torch.equal(
                torch.cat(ups[step - 1 :: step]), whole_up
            )
            assert all(torch.equal(down, whole_down) for down in downs)
