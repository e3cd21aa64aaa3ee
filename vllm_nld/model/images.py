"""How an image becomes pixels and tokens, as the vision-language model was trained.

Pixels: alpha goes onto white, the orientation in EXIF data is ignored, the longest side is at most `max_image_size`,
and both sides are rounded up to whole cells of patch_size x spatial_merge_size. Tokens: a start token, which the chat
template writes, then rows of one pad per cell with a break between two rows, and an end token. mistral_common does all
of this but for the start token.

    encoder = Images.of(config)
    pixels, tokens = encoder(image)         # [3, 84, 56] float32, [18, 19, 19, 20, 19, 19, 20, 19, 19, 21]
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

    from vllm_nld.model.configs import NemotronLabsDiffusionVLMConfig

MOST_PIXELS = (
    2**26
)  # of an uploaded image, 8192 x 8192: above that, decoding takes too much memory for what is left of it

# Pillow's modes whose conversion to RGB means what the sender meant. Others, such as CMYK or 16-bit gray, would be
# converted without their color profile or range.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX")


class ImageError(ValueError):
    """An image that the model cannot look at."""


def check_image(image: "Image") -> None:
    """Raise ImageError for an image with several frames, or one whose colors are not clear."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageError(f"the image has {frames} frames: send one of them, or several images")
    if image.mode not in MODES:
        raise ImageError(f"the image has Pillow's mode {image.mode!r}: convert it to 8-bit RGB, RGBA or gray")
    if min(image.size) < 1:
        raise ImageError(f"the image has no pixels: its size is {image.width} x {image.height}")


@dataclass(frozen=True, slots=True)
class Images:
    """The rule, with a model's numbers."""

    cell: int  # pixels that a token covers, a side
    longest: int  # side, in pixels
    patch: int
    start: int  # token ids
    pad: int
    row_break: int
    end: int

    @classmethod
    def of(cls, config: "NemotronLabsDiffusionVLMConfig") -> Self:
        """The rule of a model."""
        patch = config.vision_config.patch_size
        cell = patch * config.spatial_merge_size
        return cls(cell, config.max_image_size, patch, *config.image_token_ids.values())

    @property
    def most_cells(self) -> int:
        """Pads of the largest image."""
        return self.cells(self.longest, self.longest)[0] ** 2

    def cells(self, width: int, height: int) -> tuple[int, int]:
        """Columns and rows of an image of this size."""
        ratio = max(width, height) / self.longest
        if ratio > 1:
            width, height = (max(round(side / ratio), 1) for side in (width, height))
        return -(-width // self.cell), -(-height // self.cell)

    def tokens(self, columns: int, rows: int) -> list[int]:
        """An image's tokens."""
        row = [self.pad] * columns
        return [self.start, *(row + [self.row_break]) * (rows - 1), *row, self.end]

    def __call__(self, image: "Image") -> tuple[np.ndarray, list[int]]:  # [3, height, width] float32, ids
        """Pixels and tokens. Raises ImageError for an image that the model cannot look at."""
        from mistral_common.protocol.instruct.chunk import ImageChunk
        from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs

        check_image(image)
        encoder = ImageEncoder(
            ImageConfig(self.patch, self.longest, self.cell // self.patch),
            SpecialImageIDs(self.pad, self.row_break, self.end),
        )
        encoding = encoder(ImageChunk(image=image))
        return encoding.image, [self.start, *encoding.tokens]
