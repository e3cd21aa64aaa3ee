"""First mistakes on `vllm serve`'s command line: one sentence, before anything is loaded."""

import argparse
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests.tiny import write_json, write_tiny_checkpoint
from vllm_nld.serving import preflight
from vllm_nld.serving.preflight import first_mistake
from vllm_nld.tools.server import free_port


def mistake(model_tag: object, **options: Any) -> str:
    """What is found in a command line with these options."""
    args: dict[str, Any] = {"model_tag": model_tag and str(model_tag), "model": "default", "revision": None}
    args |= {"tokenizer": None, "skip_tokenizer_init": False, "hf_overrides": {}, "hf_config_path": None}
    args |= {"headless": False, "uds": None, "host": None, "port": free_port()}
    return first_mistake(argparse.Namespace(**args | options))


def use_hub(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Ask this port for repositories. Both names come from HF_ENDPOINT, when they are imported."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + template)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The hub is out of reach, and its cache is empty."""
    use_hub(monkeypatch, 9)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    yield


def test_good_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / "model")
    (path / "tokenizer.json").write_text("{}")
    assert mistake(path) == ""
    assert mistake(None, model=str(path)) == "", "--model"
    assert mistake(path, uds="/tmp/socket", port=0) == ""


@pytest.mark.parametrize("path", ["/no/such/model", "./model", "~/model", "models/nld/8b"])
def test_wrong_path(path: str) -> None:
    remedy = "name a checkpoint's folder, or a Hugging Face repository as OWNER/NAME"
    assert mistake(path) == f"{path} does not exist: {remedy}"


def test_folder_without_a_checkpoint(tmp_path: Path) -> None:
    assert mistake(tmp_path) == f"{tmp_path} has no config.json: name a checkpoint's folder"


def test_no_tokenizer(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / "model")
    (path / "tokenizer.json").unlink(missing_ok=True)
    why = f"{path}/tokenizer.json does not exist: download tokenizer.json with the weights"
    assert mistake(path) == why
    assert mistake(path, skip_tokenizer_init=True) == mistake(path, tokenizer="owner/name") == ""
    assert mistake(path, tokenizer="/no/such").startswith("--tokenizer /no/such does not exist: name ")


def test_damaged_weights(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / "model")
    (path / "model.safetensors").write_bytes(b"not weights")
    assert "model.safetensors is damaged" in mistake(path) and "download it again" in mistake(path)


def test_other_models_are_left_alone(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"architectures": ["LlamaForCausalLM"]})
    assert mistake(tmp_path) == ""
    assert mistake("s3://bucket/model") == mistake("owner/name:Q4_K_M") == ""


def test_repository_without_network(offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    why = mistake("owner/name")
    assert why.startswith("owner/name is no folder here, and http://127.0.0.1:9 is out of reach (")
    assert "HF_ENDPOINT" in why
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "unset HF_HUB_OFFLINE" in mistake("owner/name")


@pytest.mark.timeout(30)
def test_a_hub_that_does_not_answer_is_not_waited_for(offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "TIMEOUT", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        use_hub(monkeypatch, silent.getsockname()[1])
        assert "is out of reach (ReadTimeout)" in mistake("owner/name")


def test_repository_in_the_cache(offline: None) -> None:
    """As the hub's client lays it out."""
    root = Path(constants.HF_HUB_CACHE) / "models--owner--name"
    (root / "refs").mkdir(parents=True)
    (root / "refs/main").write_text("0" * 40)
    (root / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (root / "snapshots" / ("0" * 40) / "config.json").write_text("{}")
    assert mistake("owner/name") == ""


def test_port_in_use(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {})
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert mistake(tmp_path, port=port) == f"port {port} is in use: stop the other server, or choose another --port"
        assert mistake(tmp_path, port=port, headless=True) == ""
    assert "can't be used" in mistake(tmp_path, host="203.0.113.1")
