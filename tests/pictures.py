"""Pictures for tests of the vision-language model."""

import io
from typing import Any

import numpy as np
from PIL import Image


def picture(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Random pixels: no two seeds look alike."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels, mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The contents of an image file."""
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return file.getvalue()


def animation(frames: int = 2) -> bytes:
    """A GIF with several frames."""
    first, *others = (picture(8, 8, seed, "P") for seed in range(frames))
    return encoded(first, "GIF", save_all=True, append_images=others)
