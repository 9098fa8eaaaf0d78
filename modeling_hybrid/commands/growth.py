"""Images while they are drawn: what there is of them, whenever a row of patches is whole."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from queue import Queue
from threading import Thread

import numpy as np
from PIL import Image


class Rows:
    """
    A streamer for `generate`.

    Args:
        processor: turns codes into images.
        config: of the model.
        show: is called with the images as far as they are drawn; what is missing is black.
    """

    def __init__(self, processor, config, show: Callable[[list[Image.Image]], None]):
        self.processor = processor
        self.config = config
        self.show = show
        self.codes = None

    def put(self, codes) -> None:
        """Further patches, (B, s, K)."""
        import torch

        self.codes = codes if self.codes is None else torch.cat([self.codes, codes], dim=1)
        missing = self.config.num_patches - self.codes.shape[1]
        if missing % (self.config.image_size // self.config.patch_size) == 0:
            whole = torch.nn.functional.pad(self.codes, (0, 0, 0, missing))
            self.show(self.processor.codes_to_images(whole))

    def end(self) -> None:
        self.codes = None


def as_they_grow(model, processor, **arguments) -> Iterator[list[Image.Image]]:
    """Images that `model.generate(**arguments)` draws, row by row; the last ones are whole."""
    drawn = Queue()

    def draw():
        try:
            model.generate(streamer=Rows(processor, model.config, drawn.put), **arguments)
            drawn.put(None)
        except Exception as error:
            drawn.put(error)

    Thread(target=draw, daemon=True).start()
    while isinstance(images := drawn.get(), list):
        yield images
    if images is not None:
        raise images


def can_be_watched() -> bool:
    """Whether stderr is a terminal that shows colours, by the usual signs."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in (None, "dumb") and "NO_COLOR" not in os.environ


class InTerminal:
    """Shows as many of the images as fit side by side on stderr, over those of the call before."""

    def __init__(self):
        self.num_lines = 0

    def __call__(self, images: list[Image.Image]) -> None:
        columns = shutil.get_terminal_size().columns
        width = min(images[0].width, columns)
        height = max(1, round(images[0].height * width / images[0].width))
        shown = images[: max(1, columns // (width + 1))]
        blocks = [_half_blocks(image.convert("RGB").resize((width, height))) for image in shown]
        up = f"\x1b[{self.num_lines}A\r" if self.num_lines else ""
        self.num_lines = len(blocks[0])
        sys.stderr.write(up + "".join(" ".join(line) + "\x1b[0m\n" for line in zip(*blocks, strict=True)))
        sys.stderr.flush()


def _half_blocks(image: Image.Image) -> list[str]:
    """Lines of text, each of two rows of pixels."""
    pixels, lines = np.asarray(image), []
    for y in range(0, image.height, 2):
        line = ""
        for x in range(image.width):
            line += "\x1b[38;2;{};{};{}m".format(*pixels[y, x])
            below = pixels[y + 1, x] if y + 1 < image.height else None
            line += "\x1b[49m" if below is None else "\x1b[48;2;{};{};{}m".format(*below)
            line += "\N{UPPER HALF BLOCK}"
        lines.append(line + "\x1b[0m")
    return lines
