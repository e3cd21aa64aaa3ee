"""Images become the pixels and tokens that the released model was trained with."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.protocol.instruct.chunk import ImageChunk
from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs
from PIL import Image

from tests.pictures import animation, encoded, picture
from tests.scale import scaled
from tests.tiny import VLM, tiny_config
from vllm_nld.model.configs import NemotronLabsDiffusionVLMConfig
from vllm_nld.model.image_processor import as_sent, check_tokenizer
from vllm_nld.model.images import ImageError, Images

RELEASED = Images.of(NemotronLabsDiffusionVLMConfig())
TINY = Images.of(tiny_config(**VLM))
ORACLE = ImageEncoder(ImageConfig(14, 1400, 2), SpecialImageIDs(19, 20, 21))
SIDES = st.one_of(st.integers(1, 60), st.integers(1, 8000), st.integers(1390, 1410))
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@settings(max_examples=scaled(600), deadline=None, derandomize=True)
@given(width=SIDES, height=SIDES)
def test_grid(width: int, height: int) -> None:
    """mistral_common's grid, and the published rule: both sides divided by one ratio, rounded, whole cells of 28."""
    columns, rows = RELEASED.cells(width, height)
    assert (columns, rows) == ORACLE._image_to_num_tokens(SimpleNamespace(size=(width, height)))
    ratio = max(width, height, 1400) / 1400
    for cells, side in ((columns, width), (rows, height)):
        scaled_side = max(round(side / ratio), 1)
        assert (cells - 1) * 28 < scaled_side <= cells * 28
    tokens = RELEASED.tokens(columns, rows)
    assert len(tokens) == columns * rows + rows + 1 <= 2551
    assert tokens.count(19) == columns * rows and tokens.count(20) == rows - 1


@pytest.mark.parametrize("size", [(1, 1), (28, 29), (90, 31), (1401, 3), (300, 1500), (1, 8000), (8000, 700)], ids=str)
def test_pixels_and_tokens_are_those_of_mistral_common(size: tuple[int, int]) -> None:
    """Byte for byte."""
    image = picture(*size)
    pixels, tokens = RELEASED(image)
    exact = ORACLE(ImageChunk(image=image))
    assert (pixels.dtype, pixels.shape) == (np.float32, exact.image.shape)
    assert pixels.tobytes() == exact.image.tobytes()
    assert tokens == [18, *exact.tokens]
    columns, rows = RELEASED.cells(*size)
    assert pixels.shape == (3, rows * 28, columns * 28) and tokens == RELEASED.tokens(columns, rows)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P"])
def test_pixels(mode: str) -> None:
    """Alpha onto white, bicubic on float32, then the mean and deviation of CLIP."""
    image = picture(37, 21, mode="L").convert(mode) if mode in "1P" else picture(37, 21, mode=mode)
    white = Image.new("RGBA", image.size, "white")
    rgba = image.convert("RGBA")
    white.paste(rgba, (0, 0), rgba)
    rgb = np.array(white.convert("RGB"), dtype=np.float32)
    expected = (cv2.resize(rgb, (40, 24), interpolation=cv2.INTER_CUBIC) / 255 - np.float32(MEAN)) / np.float32(
        DEVIATION
    )
    np.testing.assert_allclose(TINY(image)[0], expected.transpose(2, 0, 1), atol=1e-6)


def as_received(data: bytes, **options: object) -> Image.Image:
    """What the model gets of a file that was uploaded to vLLM."""
    from vllm.multimodal.media.image import ImageMediaIO

    return as_sent(ImageMediaIO(**options).load_bytes(data)).media


def transparent_palette() -> Image.Image:
    image = picture(9, 5, mode="P")
    image.info["transparency"] = image.getpixel((0, 0))
    return image


UPLOADS = {
    "PNG": encoded(picture(9, 5)),
    "alpha": encoded(picture(9, 5, mode="RGBA")),
    "gray with alpha": encoded(picture(9, 5, mode="LA")),
    "palette with a transparent color": encoded(transparent_palette()),
    "one-frame GIF": animation(1),
    "JPEG": encoded(picture(9, 5), "JPEG"),
    "damaged EXIF": encoded(picture(9, 5), "JPEG", exif=b"Exif\x00\x00garbage"),
}


@pytest.mark.parametrize("name", UPLOADS)
def test_uploads_are_used_as_sent(name: str) -> None:
    """vLLM's conversions, such as the one of palettes, make no difference."""
    import io

    exact = TINY(Image.open(io.BytesIO(UPLOADS[name])))[0]
    np.testing.assert_array_equal(TINY(as_received(UPLOADS[name]))[0], exact)


def test_orientation_is_ignored() -> None:
    """The released preprocessing does not turn photos that were taken with a turned camera."""
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6
    image = picture(9, 5)
    data = encoded(image, exif=exif)
    assert as_received(data).size == (9, 5)
    np.testing.assert_array_equal(TINY(as_received(data))[0], TINY(image)[0])


def test_a_chosen_background_is_kept() -> None:
    clear = encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0)))
    assert as_received(clear, rgba_background_color=(255, 0, 0)).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (animation(3), "has 3 frames: send one of them"),
        (encoded(Image.new("CMYK", (8, 8)), "JPEG"), "mode 'CMYK': convert it to 8-bit RGB"),
        (encoded(Image.new("I;16", (8, 8))), "mode 'I;16': convert it"),
    ],
    ids=["animated", "CMYK", "16-bit gray"],
)
def test_unclear_images_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        as_received(data)


def test_the_tokenizer_must_have_the_same_image_tokens() -> None:
    ids = NemotronLabsDiffusionVLMConfig().image_token_ids
    check_tokenizer(SimpleNamespace(get_vocab=lambda: ids), ids)
    for vocabulary, found in ((ids | {"<|image_pad|>": 7}, 7), ({}, None)):
        with pytest.raises(ValueError, match=rf"is token {found} in the tokenizer and \d+ in config\.json"):
            check_tokenizer(SimpleNamespace(get_vocab=lambda given=vocabulary: given), ids)


@pytest.mark.parametrize("item", ["picture.png", np.zeros((8, 8, 3))], ids=["path", "array"])
def test_other_types_are_refused(item: object) -> None:
    with pytest.raises(ImageError, match="must be PIL images, not"):
        as_sent(item)
