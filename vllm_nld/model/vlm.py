"""The vision-language model in vLLM: the text model, and a Pixtral tower with Mistral 3's projector beside it.

Images are in prompts only. vLLM runs the tower when an image's first token is scheduled, keeps the features until its
last one is computed, and puts them in place of the pads' embeddings. So the target's forward gets embeddings, in every
step; draft passes, whose blocks hold no image, make theirs themselves.
"""

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import MultiModalEmbeddings, SupportsMultiModal
from vllm.model_executor.models.mistral3 import Mistral3MultiModalProjector
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.pixtral import PixtralHFVisionModel
from vllm.model_executor.models.utils import WeightsMapper, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_nld.model.causal_lm import NemotronLabsDiffusionModel
from vllm_nld.model.image_processor import Dummies, Info, Processor


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=Dummies)
class NemotronLabsDiffusionVLMModel(NemotronLabsDiffusionModel, SupportsMultiModal):
    """The text model with eyes. With `--limit-mm-per-prompt '{"image": 0}'` it is the text model alone."""

    hf_to_vllm_mapper = (
        WeightsMapper(
            orig_to_new_prefix={
                "encoder.vision_tower.": "vision_tower.",
                "encoder.multi_modal_projector.": "multi_modal_projector.",
                "model.vision_tower.": "vision_tower.",
                "model.multi_modal_projector.": "multi_modal_projector.",
            }
        )
        | NemotronLabsDiffusionModel.hf_to_vllm_mapper
    )
    embed_input_ids = SupportsMultiModal.embed_input_ids  # which also places the features of images

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        model, quantization = vllm_config.model_config, vllm_config.quant_config
        config = model.hf_config
        self.embeds_drafts = model.supports_multimodal_inputs
        with self._mark_tower_model(vllm_config, "image"):
            self.vision_tower = PixtralHFVisionModel(
                config.vision_config,
                quantization,
                require_post_norm=False,
                prefix=maybe_prefix(prefix, "vision_tower"),
            )
            self.multi_modal_projector = Mistral3MultiModalProjector(
                vision_hidden_size=config.vision_config.hidden_size,
                text_hidden_size=config.hidden_size,
                spatial_merge_size=config.spatial_merge_size,
                patch_size=config.vision_config.patch_size,
                projector_hidden_act=config.projector_hidden_act,
                multimodal_projector_bias=config.multimodal_projector_bias,
                quant_config=quantization,
                prefix=maybe_prefix(prefix, "multi_modal_projector"),
            )

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """What stands for an image in a chat template that takes texts only."""
        if modality != "image":
            raise ValueError(f"the model takes images, not {modality}")
        return "<|image_start|>"

    def get_language_model(self) -> torch.nn.Module:
        """The decoder, for whoever wants to embed tokens."""
        return self.model

    def get_mm_mapping(self) -> MultiModelKeys:
        """Which of the submodules are which, for user LoRA: only the decoder has any."""
        return MultiModelKeys.from_string_field(
            language_model="model", connector="multi_modal_projector", tower_model="vision_tower"
        )

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        """The features of images, [cells, hidden] each, from `pixel_values`: [3, height, width] each."""
        images = kwargs.get("pixel_values")
        if images is None:
            return []
        sizes = [tuple(image.shape[-2:]) for image in images]  # type: ignore[attr-defined]  # tensors
        patches = self.vision_tower(images)
        merged = self.config.spatial_merge_size**2
        features = self.multi_modal_projector(torch.cat(patches), sizes)
        return torch.split(features, [len(image) // merged for image in patches])
