"""Undecoded images -> batches of `pixel_values`, read ahead by threads; broken images are named and left out."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from PIL import Image

from .options import ImageOptions, printable, say
from .progress import Progress
from .sources import Item


if TYPE_CHECKING:
    import torch

_NAMED = 20
# Before so many images, a share says little.
_ENOUGH = 100


class Unreadable:
    """
    Counts broken images against the share that the user allows.

    Attributes:
        errors: source, name and error of each.
    """

    def __init__(self, max_share: float):
        self.max_share = max_share
        self.num_seen = 0
        self.errors: list[tuple[int, str, str]] = []

    def add(self, item: Item, error: str) -> None:
        self.errors.append((item.source, item.name, error))
        if len(self.errors) <= _NAMED:
            say(f"cannot be read: {item.name}: {error}")

    def check(self, at_end: bool = False) -> None:
        """
        Raises:
            ValueError: more than the allowed share of the images cannot be read, or none can.
        """
        too_many = len(self.errors) > self.max_share * self.num_seen and (at_end or self.num_seen >= _ENOUGH)
        if too_many or (at_end and self.num_seen and len(self.errors) == self.num_seen):
            raise ValueError(
                f"{len(self.errors)} of {self.num_seen} images cannot be read, more than "
                f"--max-unreadable-share {self.max_share}; mend the files, or raise the share."
            )
        if at_end and self.errors:
            say(f"{len(self.errors)} of {self.num_seen} images cannot be read and are left out.")


@dataclass
class Batch:
    """
    Args:
        items: B images that could be read.
        pixel_values: (B, C, H, W) in [-1, 1], on the CPU.
        looks: what the reader's `look` gave for each.
    """

    items: list[Item]
    pixel_values: "torch.Tensor"
    looks: list[Any]


class Reader:
    """
    Reads images for a model.

    Args:
        processor: the image processor of the checkpoint.
        options: which share may be broken.
        batch_size: images at a time.
        look: what else to know of an image than the model sees; called by the threads that read.
    """

    def __init__(
        self,
        processor,
        options: ImageOptions,
        batch_size: int,
        look: Callable[[Item, Image.Image], Any] = lambda item, image: None,
    ):
        self.processor = processor
        self.look = look
        self.batch_size = batch_size
        self.unreadable = Unreadable(options.max_unreadable_share)

    def batches(self, items: Iterable[Item], progress: Progress) -> Iterator[Batch]:
        """
        Raises:
            ValueError: too many broken images.
        """
        import torch

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            # One batch is read while the model works on the one before it.
            ahead = deque()
            items = iter(items)
            while group := list(islice(items, self.batch_size)):
                ahead.append((group, [pool.submit(self._read, item) for item in group]))
                if len(ahead) > 1:
                    yield from self._finish(*ahead.popleft(), progress, torch)
            while ahead:
                yield from self._finish(*ahead.popleft(), progress, torch)

    def _read(self, item: Item):
        with item.open() as image:
            # In this order: the processor refuses what is too large to decode.
            return self.processor(image, return_tensors="pt").pixel_values[0], self.look(item, image)

    def _finish(self, group, futures, progress: Progress, torch) -> Iterator[Batch]:
        items, pixel_values, looks = [], [], []
        for item, future in zip(group, futures, strict=True):
            try:
                values, look = future.result()
                items.append(item)
                pixel_values.append(values)
                looks.append(look)
            except Exception as error:  # decoders fail in many ways on broken files
                self.unreadable.add(item, printable(str(error)) or type(error).__name__)
        self.unreadable.num_seen += len(group)
        self.unreadable.check()
        if items:
            yield Batch(items, torch.stack(pixel_values), looks)
        progress.update(len(group))
