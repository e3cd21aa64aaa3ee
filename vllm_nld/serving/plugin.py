"""The plugin that vLLM loads in every process, through the entry point `vllm.general_plugins: nld`.

It registers classes by string, so a process that does not build the model does not import it.
"""

from vllm_nld.compat import register as patches
from vllm_nld.model.configs import (
    REFUSED_ARCHITECTURES,
    SUPPORTED_ARCHITECTURES,
    VLM_ARCHITECTURE,
    register_configs,
)

MODEL_CLASS = "vllm_nld.model.causal_lm:NemotronLabsDiffusionModel"
MODEL_CLASSES = {VLM_ARCHITECTURE: "vllm_nld.model.vlm:NemotronLabsDiffusionVLMModel"}  # of the other architectures
ATTENTION_BACKEND = "attention_backend.backend.BlockMaskBackend"


def register() -> None:
    """Register configs, architectures, start-up checks and patches with vLLM. Idempotent."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from vllm_nld.serving.startup import ServedModel, refuse

    register_configs()
    register_backend(AttentionBackendEnum.CUSTOM, ATTENTION_BACKEND)
    for architecture in SUPPORTED_ARCHITECTURES:
        _register_model(ModelRegistry, architecture)
        MODELS_CONFIG_MAP[architecture] = ServedModel
    for architecture, why in REFUSED_ARCHITECTURES.items():
        _register_model(ModelRegistry, architecture)
        MODELS_CONFIG_MAP[architecture] = refuse(architecture, why)
    patches.apply()


def _register_model(registry: object, architecture: str) -> None:
    if architecture not in registry.get_supported_archs():  # type: ignore[attr-defined]
        registry.register_model(architecture, MODEL_CLASSES.get(architecture, MODEL_CLASS))  # type: ignore[attr-defined]
