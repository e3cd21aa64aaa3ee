"""What a picture shows, as data, and the question about it; `draw` makes the picture.

The same scene gives the same pixels everywhere: shapes are plain polygons and letters come from Pillow's built-in
bitmap font, so held-out questions ship without image files.
"""

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

COLORS = {
    "red": (220, 30, 30),
    "green": (20, 150, 50),
    "blue": (40, 70, 220),
    "yellow": (240, 210, 30),
    "orange": (245, 140, 20),
    "purple": (140, 50, 170),
    "black": (20, 20, 20),
    "gray": (140, 140, 140),
}
THINGS = ("ball", "box", "ring", "door")  # a disk, a square, a circle and a tall frame
TEXT = "text"
BACKGROUND = (255, 255, 255)
LETTER, PITCH = (6, 11), 8  # size of a letter, and pixels from one to the next


@dataclass(frozen=True, slots=True)
class Item:
    """A thing, or a text, in a box of pixels: left, top, right, bottom."""

    kind: str
    color: str
    box: tuple[int, int, int, int]
    text: str = ""

    def __post_init__(self) -> None:
        if self.kind not in (*THINGS, TEXT) or self.color not in COLORS:
            raise ValueError(f"nobody can draw a {self.color} {self.kind}")


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture's size and what is in it, in reading order."""

    size: tuple[int, int]  # width, height
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """A request about a picture, and the one right answer to it."""

    category: str
    request: str
    expected: str
    scene: Scene


def draw(scene: Scene) -> "Image":
    """The picture."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", scene.size, BACKGROUND)
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default_imagefont()
    canvas.fontmode = "1"  # no smoothing, which may differ between builds of Pillow
    for item in scene.items:
        left, top, right, bottom = item.box
        color = COLORS[item.color]
        if item.kind == TEXT:
            for index, letter in enumerate(item.text):
                canvas.text((left + PITCH * index, top), letter, fill=color, font=font)
        elif item.kind == "ball":
            canvas.ellipse(item.box, fill=color)
        elif item.kind == "box":
            canvas.rectangle(item.box, fill=color)
        elif item.kind == "ring":
            canvas.ellipse(item.box, outline=color, width=3)
        else:
            quarter = (right - left) // 4
            canvas.rectangle((left + quarter, top, right - quarter, bottom), outline=color, width=2)
    return image


def data_url(scene: Scene) -> str:
    """The picture as a request carries it."""
    file = io.BytesIO()
    draw(scene).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
