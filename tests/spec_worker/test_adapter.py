"""The draft adapter is never silently without effect."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.engines import engine
from tests.spec_worker.conftest import linear, write_agreeable_checkpoint
from vllm_nld.model.checkpoint import ADAPTER_DIR


def test_an_adapter_without_effect_ends_start_up(tmp_path: Path) -> None:
    path = write_agreeable_checkpoint(tmp_path)
    file = path / ADAPTER_DIR / "adapter_model.safetensors"
    save_file({name: tensor * ("lora_A" in name) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(RuntimeError, match="has no effect on draft logits"), engine(path, **linear(8)):
        pass
