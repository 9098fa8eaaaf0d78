"""Pictures on grids, and how they are saved."""

import math
import re
from pathlib import Path

from PIL import Image

from .results import written_whole


_BACKGROUND = (90, 110, 160)


def sheet(images: list[Image.Image], num_columns: int | None = None, height: int = 480) -> Image.Image:
    """Images on a grid, row by row (a square, if nothing is said), enlarged without smoothing to about `height`."""
    num_columns = num_columns or math.ceil(math.sqrt(len(images)))
    width, tall = images[0].size
    num_rows = math.ceil(len(images) / num_columns)
    canvas = Image.new("RGB", (num_columns * (width + 1) + 1, num_rows * (tall + 1) + 1), _BACKGROUND)
    for i, image in enumerate(images):
        canvas.paste(image, (1 + i % num_columns * (width + 1), 1 + i // num_columns * (tall + 1)))
    factor = max(1, height // canvas.height)
    return canvas.resize((canvas.width * factor, canvas.height * factor), Image.Resampling.NEAREST)


def save(picture: Image.Image, path: Path) -> None:
    """A PNG, whole or not at all."""
    with written_whole(path) as partial:
        picture.save(partial, "PNG")


def file_name(number: int, name: str) -> str:
    """Of a picture of an image: its number makes it unique, the end of its name makes it known."""
    known = re.sub(r"[^\w.-]+", "_", Path(name).name)[-80:]
    return f"{number:06d}_{known}.png"
