"""Can this checkpoint be served?"""

from collections.abc import Iterator
from pathlib import Path

from vllm_nld.tools.doctor.check import Check


def check_checkpoint(path: Path) -> Iterator[Check]:
    """Config, tensors, tokenizer and draft adapter of a checkpoint folder, from headers alone."""
    from vllm_nld.model.checkpoint import ADAPTER_DIR, CheckpointError, check_tensors, read_config, read_shapes
    from vllm_nld.model.configs import REFUSED_ARCHITECTURES, SUPPORTED_ARCHITECTURES, config_class

    try:
        raw = read_config(path)
        architecture = (raw.get("architectures") or ["none"])[0]
        if architecture not in SUPPORTED_ARCHITECTURES:
            why = REFUSED_ARCHITECTURES.get(architecture, "is not an architecture that vllm-nld serves")
            served = "name a checkpoint with architectures " + " or ".join(SUPPORTED_ARCHITECTURES)
            yield Check("checkpoint", False, f"{path}: {architecture} {why}", served)
            return
        config = config_class(raw)(**raw)
        check_tensors(config, read_shapes(path), where=path, quantized="quantization_config" in raw)
    except CheckpointError as error:
        yield Check("checkpoint", False, error.problem, error.remedy)
        return
    except (ValueError, TypeError, KeyError) as error:
        yield Check("checkpoint", False, f"{path}/config.json: {error}", "take config.json from the model's repository")
        return
    shape = f"{config.num_hidden_layers} layers, block {config.block_size}, mask {config.mask_token_id}"
    yield Check("checkpoint", True, f"{architecture}, {shape}")
    tokenizer = (path / "tokenizer.json").exists() or (path / "tekken.json").exists()
    detail = f"{path}/tokenizer.json" + ("" if tokenizer else " does not exist")
    yield Check("tokenizer", tokenizer, detail, "download tokenizer.json with the weights")
    adapter = path / ADAPTER_DIR / "adapter_model.safetensors"
    yield Check("draft adapter", True, str(adapter) if adapter.exists() else "none in this checkpoint")
