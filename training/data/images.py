"""
Encoded images -> levels: in a table on disk, or converted on the way.

Every image is converted and resized once, by the model's image processor, and kept as a row of bytes (its levels, C
then H then W) in an Arrow table that is memory-mapped from disk.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset as TorchDataset

from modeling_hybrid import HybridImageProcessor


def rows_to_levels(rows: list[bytes], shape: tuple[int, int, int]) -> torch.Tensor:
    """Rows of bytes -> levels (N, C, H, W), uint8."""
    return torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(-1, *shape)


def evenly(num_images: int, max_images: int) -> np.ndarray:
    """Indices of all images, or of `max_images` (0: all) at even distances: files often come sorted by class."""
    return np.linspace(0, num_images - 1, min(num_images, max_images or num_images)).round().astype(int)


class LevelsDataset(TorchDataset):
    """Levels (C, H, W), uint8, of a split; a batch of indices is fetched in one go."""

    def __init__(self, table: datasets.Dataset, shape: tuple[int, int, int]):
        self.table = table
        self.shape = shape

    def __len__(self) -> int:
        return len(self.table)

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        return rows_to_levels(self.table[indices]["levels"], self.shape)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.__getitems__([index])[0]

    def all_levels(self, max_images: int = 0) -> torch.Tensor:
        """All levels (N, C, H, W), or those of `max_images` images."""
        return self.__getitems__(evenly(len(self), max_images).tolist())

    def labels(self, max_images: int = 0) -> np.ndarray | None:
        """Integer labels (N,) of the images of `all_levels`, or `None` where the data has none."""
        if "label" not in self.table.column_names:
            return None
        return np.array(self.table["label"][:])[evenly(len(self), max_images)]

    def groups(self, max_images: int = 0) -> np.ndarray | None:
        """Group of each image of `all_levels` as an integer (N,), or `None` where the data has no groups."""
        if "group" not in self.table.column_names:
            return None
        return np.unique(self.table["group"][:], return_inverse=True)[1][evenly(len(self), max_images)]


class ToLevels:
    """
    A batch of undecoded images -> their levels as bytes, or why an image could not be read.

    Called by `datasets`' `map`; holds plain values only, so that the map's cache recognises it.
    """

    def __init__(self, image_processor: HybridImageProcessor):
        self.image_processor = image_processor

    def __call__(self, batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        converted = [self.convert(image, f"row {index}") for image, index in zip(batch["image"], indices, strict=True)]
        return {"levels": [levels for levels, _ in converted], "error": [error for _, error in converted]}

    def convert(self, image: dict | None, name: str) -> tuple[bytes, str | None]:
        """The levels of an image and no error; or none, and an error that names the file (`name`, if it has none)."""
        try:
            return self._levels(image), None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return b"", f"{(image or {}).get('path') or name}: {error}"

    def _levels(self, image: dict | None) -> bytes:
        if image is None:
            raise ValueError("the row has no image")
        source = image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"])
        try:
            with Image.open(source) as opened:
                levels = self.image_processor(opened, do_rescale=False, return_tensors="pt").pixel_values[0]
        except UnidentifiedImageError:  # its message names an address in memory
            raise ValueError("it is no image file of a kind that is known, or cut in its header") from None
        return levels.numpy().tobytes()


# Opening a shard takes time that grows with the number of files, so that many small files are taken together.
_MAX_SHARDS = 1024


@dataclass
class ImageStream:
    """
    Undecoded images (column `image`) that are read shard by shard, converted on the way and never held at once.

    Args:
        begin: shard and row of it before which all rows belong to another split.
    """

    rows: datasets.IterableDataset
    converter: ToLevels
    shape: tuple[int, int, int]
    shuffle_buffer: int
    max_unreadable_share: float
    begin: tuple[int, int] = (0, 0)

    @property
    def num_shards(self) -> int:
        return num_shards(self.rows) - self.begin[0]

    def images(self, shard: int, first: int) -> Iterator[dict]:
        """The images of a shard in their order, without the `first` ones."""
        rows = shard_of(self.rows, self.begin[0] + shard).skip(first + (self.begin[1] if shard == 0 else 0))
        # Not by plain iteration: inside a worker process that would give a part only.
        return (image for chunk in rows.iter(batch_size=64) for image in chunk["image"])


def num_shards(rows: datasets.IterableDataset) -> int:
    return min(rows.num_shards, _MAX_SHARDS)


def shard_of(rows: datasets.IterableDataset, shard: int) -> datasets.IterableDataset:
    return rows.shard(num_shards(rows), shard)
