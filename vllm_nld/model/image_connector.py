"""How a server with the vision-language model fetches images: as vLLM does, but only what says that it is an image.

vLLM decodes a data URL whatever media type it declares. `use` makes this connector the default one; the user's choice,
VLLM_MEDIA_CONNECTOR, goes before it.
"""

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import Image
from vllm.multimodal.media.connector import MEDIA_CONNECTOR_REGISTRY, MediaConnector

from vllm_nld.model.images import MOST_PIXELS, ImageError

NAME = "nld"

# What Pillow raises for damaged or huge files besides OSError and ValueError, which vLLM handles, and vLLM itself for a
# file's URL without permission for files.
BROKEN = (SyntaxError, Image.DecompressionBombError, struct.error, zlib.error, EOFError, IndexError, RuntimeError)


@MEDIA_CONNECTOR_REGISTRY.register(NAME)
class ImageConnector(MediaConnector):
    """vLLM's connector, with a look at what a data URL declares."""

    def fetch_image(self, image_url: str, **options: Any) -> Image.Image:
        check_media_type(image_url)
        with refusing():
            return super().fetch_image(image_url, **options)

    async def fetch_image_async(self, image_url: str, **options: Any) -> Image.Image:
        check_media_type(image_url)
        with refusing():
            return await super().fetch_image_async(image_url, **options)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Make an error of the request of what vLLM would take for one of its own, and answer by HTTP 500."""
    try:
        yield
    except BROKEN as error:
        raise ImageError(f"the image cannot be read: {error}") from error


def check_media_type(url: str) -> None:
    """Raise ImageError for a data URL of something else than an image. Without a type it may be one."""
    scheme, _, rest = url.partition(":")
    kind = rest.partition(",")[0].partition(";")[0].strip().lower()
    if scheme.lower() == "data" and kind and not kind.startswith("image/"):
        raise ImageError(f"image_url has media type {kind[:64]!r}: send an image, such as data:image/png;base64,...")


def use() -> None:
    """Set the defaults of vLLM's media loading for this process and those it starts: the connector, and the limit of
    pixels, which vLLM compares with an image's header before it decodes anything.
    """
    os.environ.setdefault("VLLM_MEDIA_CONNECTOR", NAME)
    os.environ.setdefault("VLLM_MAX_IMAGE_PIXELS", str(MOST_PIXELS))
