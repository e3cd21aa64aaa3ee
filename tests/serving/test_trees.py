"""What keeps a server from verifying draft trees: an error at start-up if it is to have them, else one of a request."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vllm.config import KVTransferConfig
from vllm.config.compilation import CUDAGraphMode

from tests.serving.test_speculation import drafter, nld
from tests.serving.test_startup import start
from vllm_nld.serving.requests import ServerModes
from vllm_nld.serving.trees import obstacle

OBSTACLES: dict[str, tuple[Callable[[Any], None], str]] = {
    "sampled drafts": (
        lambda config: setattr(config.speculative_config, "draft_sample_method", "probabilistic"),
        "draft_sample_method",
    ),
    "trimmed drafts": (
        lambda config: setattr(config.speculative_config, "enable_adaptive_verification", True),
        "enable_adaptive_verification",
    ),
    "fixed acceptance": (
        lambda config: setattr(config.speculative_config, "rejection_sample_method", "synthetic"),
        "rejection_sample_method 'synthetic'",
    ),
    "a KV connector": (
        lambda config: setattr(
            config, "kv_transfer_config", KVTransferConfig(kv_connector="ExampleConnector", kv_role="kv_both")
        ),
        "--kv-transfer-config",
    ),
    "logits processors": (
        lambda config: setattr(config.model_config, "logits_processors", ["some.Processor"]),
        "--logits-processors",
    ),
    "sampling masks": (
        lambda config: setattr(config.model_config, "return_sampling_mask", True),
        "--return-sampling-mask",
    ),
    "sharded sampling": (
        lambda config: setattr(config.parallel_config, "enable_batch_sharded_sampling", True),
        "--enable-batch-sharded-sampling",
    ),
    "quantized attention": (
        lambda config: setattr(config.compilation_config.pass_config, "fuse_attn_quant", True),
        "fuse_attn_quant",
    ),
    "a quantized KV cache": (lambda config: setattr(config.cache_config, "cache_dtype", "fp8"), "--kv-cache-dtype fp8"),
}


def asked(nodes: int) -> dict[str, Any]:
    return {"nld_mode": "linear", "nld_tree_nodes": nodes}


@pytest.mark.parametrize(("change", "message"), OBSTACLES.values(), ids=OBSTACLES)
def test_obstacles_are_named(change: Callable[[Any], None], message: str, tiny_checkpoint: Path) -> None:
    config = start(tiny_checkpoint)
    assert obstacle(config) is None
    assert ServerModes.of(config).read(asked(8)).tree_nodes == 8
    change(config)
    with pytest.raises(ValueError, match=f"nld_tree_nodes must be 0, not 8, on this server: .*{message}"):
        ServerModes.of(config).read(asked(8))
    assert ServerModes.of(config).read(asked(0)).tree_nodes == 0


def test_settings_for_trees_meet_them_at_start_up(tiny_checkpoint: Path) -> None:
    options = nld(tree_nodes=7) | drafter(tiny_checkpoint, draft_sample_method="probabilistic")
    with pytest.raises(ValueError, match=r"nld.tree_nodes 7 is not possible: .*draft_sample_method"):
        start(tiny_checkpoint, **options)


@pytest.mark.parametrize(("nodes", "possible"), [(0, False), (8, True)], ids=["chains", "trees"])
def test_graphs_have_masks_if_the_server_has_trees(nodes: int, possible: bool, tiny_checkpoint: Path) -> None:
    config = start(tiny_checkpoint, **nld(tree_nodes=nodes))
    config.compilation_config.cudagraph_mode = CUDAGraphMode.FULL_AND_PIECEWISE
    assert (obstacle(config) is None) == possible
    config.compilation_config.cudagraph_mode = CUDAGraphMode.PIECEWISE
    assert obstacle(config) is None
    config.compilation_config.cudagraph_mode = CUDAGraphMode.FULL
    assert "set cudagraph_mode to FULL_AND_PIECEWISE" in str(obstacle(config))
