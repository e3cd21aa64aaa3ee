"""Weightless checkpoints of released shapes pass the plugin's own checks."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.shapes import write
from vllm_nld.model.adapter import find_adapter
from vllm_nld.model.checkpoint import check_tensors, expected_shapes, read_config, read_shapes
from vllm_nld.model.configs import NemotronLabsDiffusionConfig
from vllm_nld.nano import checkpoint_path
from vllm_nld.roofline.shapes import SHAPES, Shape, nano


@pytest.mark.parametrize("name", SHAPES)
def test_headers_and_adapter_pass_the_start_up_checks(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, replace(SHAPES[name], rank=2), layers=2)
    config = NemotronLabsDiffusionConfig(**read_config(folder))
    shapes = read_shapes(folder)
    check_tensors(config, shapes, where=folder)
    adapter = find_adapter(str(folder), None, "auto")
    assert adapter is not None and adapter.scale == 4
    adapter.check(config)
    file = folder / "model.safetensors"
    assert file.stat().st_size > 1e9 and file.stat().st_blocks * 512 < 1e6, "sparse, not gigabytes"


def parameters(shape: Shape) -> int:
    matrices = shape.layers * shape.layer_parameters + 2 * shape.head_parameters
    return matrices + (2 * shape.layers + 1) * shape.hidden


def test_parameter_count_of_nano() -> None:
    shapes = expected_shapes(NemotronLabsDiffusionConfig(**read_config(checkpoint_path())))
    total = 0
    for size in shapes.values():
        values = 1
        for length in size:
            values *= length
        total += values
    assert parameters(nano()) == total
