"""A tiny checkpoint on which drafts are accepted now and then, so that every path of verification is taken."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.tiny import write_tiny_checkpoint

ANSWERS = (3, 11, 42, 77, 200, 319)  # the only tokens it generates; 11 is EOS


def write_agreeable_checkpoint(path: Path, **options: object) -> Path:
    """A random model whose head knows six tokens: two random argmaxes agree in one case out of six or more."""
    write_tiny_checkpoint(path, **options)  # type: ignore[arg-type]
    tensors = load_file(path / "model.safetensors")
    head = tensors["diffusion_head.weight"]
    known = head[list(ANSWERS)].clone()
    head.zero_()
    head[list(ANSWERS)] = known
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(scope="session")
def agreeable_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: tests share it."""
    return write_agreeable_checkpoint(tmp_path_factory.mktemp("agreeable"))
