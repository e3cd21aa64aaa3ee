"""Images in vLLM's prompts: which a request may have, and what becomes of them before the model sees them.

The rule itself is in `images.py`. A prompt has one `<|image_start|>` for each image, which the chat template writes.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature
from vllm.inputs import MultiModalDataDict
from vllm.multimodal.image import open_image
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import ImageProcessorItems, ModalityDataItems, MultiModalDataItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
    PromptUpdateDetails,
)
from vllm.multimodal.processing.inputs import ProcessorInputs

from vllm_nld.model.images import ImageError, Images, check_image

WHITE = (255, 255, 255)


class Parser(MultiModalDataParser):
    """Takes images as they were sent, where vLLM has turned or converted them."""

    def _parse_image_data(self, data: Any) -> ModalityDataItems[Any, Any] | None:
        if data is None or self.is_embeddings(data):
            return super()._parse_image_data(data)
        items = data if isinstance(data, (list, tuple)) else [data]
        return ImageProcessorItems([as_sent(item) for item in items])


def as_sent(item: Any) -> Any:
    """A checked image. None, which stands for one that vLLM has cached, stays None."""
    if item is None:
        return None
    if not isinstance(item, MediaWithBytes):
        if not isinstance(item, Image.Image):
            raise ImageError(f"images must be PIL images, not {type(item).__name__}")
        check_image(item)
        return item
    sent = open_image(io.BytesIO(item.original_bytes))  # reads the header only
    check_image(sent)
    if is_plain(sent) or recolored(item):
        return item
    sent.load()
    return MediaWithBytes(sent, item.original_bytes, item.io_config)


def is_plain(image: Image.Image) -> bool:
    """Whether vLLM has left the image as it was sent."""
    orientation = 1
    with contextlib.suppress(Exception):  # Pillow raises many kinds for damaged EXIF data, which vLLM ignores as well
        orientation = image.getexif().get(Image.ExifTags.Base.Orientation, 1)
    return image.mode == "RGB" and "transparency" not in image.info and orientation == 1


def recolored(item: Any) -> bool:
    """Whether the server or the request chose another background than white, or a mode."""
    chosen = item.io_config or {}
    return chosen.get("rgba_background_color", WHITE) != WHITE or chosen.get("image_mode", "RGB") != "RGB"


class ImageCall:
    """The rule in the form of a Hugging Face processor."""

    def __init__(self, rule: Images) -> None:
        self.rule = rule

    def __call__(self, images: list[Image.Image], return_tensors: str | None = None) -> BatchFeature:
        pixels = [torch.from_numpy(self.rule(image)[0]) for image in images]
        return BatchFeature({"pixel_values": pixels})


class Info(BaseProcessingInfo):
    """What vLLM may ask about a model's images."""

    @property
    def rule(self) -> Images:
        return Images.of(self.get_hf_config())

    def get_data_parser(self) -> MultiModalDataParser:
        return Parser(expected_hidden_size=self._get_expected_hidden_size())

    def get_hf_processor(self, **kwargs: object) -> Any:
        """Raises ValueError for parameters, which would make pixels that the model has not learned."""
        if kwargs:
            raise ValueError(f"mm_processor_kwargs {sorted(kwargs)} cannot change this model's images: leave it out")
        return ImageCall(self.rule)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {"image": self.rule.most_cells}


class Dummies(BaseDummyInputsBuilder[Info]):
    """The largest images, for vLLM's memory profile."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return "<|image_start|>" * mm_counts.get("image", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> MultiModalDataDict:
        side, count = self.info.rule.longest, mm_counts.get("image", 0)
        overrides = mm_options.get("image")
        return {"image": self._get_dummy_images(width=side, height=side, num_images=count, overrides=overrides)}


class Processor(BaseMultiModalProcessor[Info]):
    """Puts an image's tokens in place of its start token, and its pixels beside the prompt."""

    requires_tokenizer = False  # it finds start tokens by id

    def __init__(self, info: Info, dummy_inputs: Dummies) -> None:
        super().__init__(info, dummy_inputs)
        if info.ctx.tokenizer is not None:
            check_tokenizer(info.ctx.tokenizer, info.get_hf_config().image_token_ids)  # type: ignore[attr-defined]

    def get_dummy_inputs(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> ProcessorInputs:
        images = self.info.parse_mm_data(
            self.dummy_inputs.get_dummy_mm_data(seq_len, mm_counts, mm_options), validate=False
        )
        return ProcessorInputs([self.info.rule.start] * mm_counts.get("image", 0), images)

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Mapping[str, MultiModalFieldConfig]:
        return {"pixel_values": MultiModalFieldConfig.batched("image")}

    def _get_prompt_updates(
        self, mm_items: MultiModalDataItems, hf_processor_mm_kwargs: Any, out_mm_kwargs: MultiModalKwargsItems
    ) -> Sequence[PromptUpdate]:
        rule = self.info.rule

        def tokens(index: int) -> PromptUpdateDetails:
            size = mm_items.get_items("image", ImageProcessorItems).get_image_size(index)
            return PromptUpdateDetails.select_token_id(rule.tokens(*rule.cells(size.width, size.height)), rule.pad)

        return [PromptReplacement("image", [rule.start], tokens)]

    def _maybe_apply_prompt_updates(self, mm_items: MultiModalDataItems, mm_res: Any) -> Any:
        """As vLLM's, after checking that no start token comes from elsewhere: images would move to its place."""
        starts, images = mm_res.prompt_ids.count(self.info.rule.start), mm_items.get_all_counts().get("image", 0)
        if starts != images:
            raise ImageError(
                f"the prompt has {starts} <|image_start|> for {images} images: the chat template writes one for each "
                "image, so don't write it in a text"
            )
        return super()._maybe_apply_prompt_updates(mm_items, mm_res)


def check_tokenizer(tokenizer: Any, ids: Mapping[str, int]) -> None:
    """Raise ValueError if the tokenizer gives image tokens other ids than the config, or has none."""
    vocabulary = tokenizer.get_vocab()
    for name, wanted in ids.items():
        if vocabulary.get(name) != wanted:
            raise ValueError(
                f"{name} is token {vocabulary.get(name)} in the tokenizer and {wanted} in config.json: they belong to "
                "different models"
            )
