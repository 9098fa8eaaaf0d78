"""Where an image surprises the model, drawn over the image."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from .batches import Batch
from .pictures import file_name, save, sheet


# From black over red and yellow to white, as in a fire.
_HEAT = np.array([(0, 0, 0), (200, 30, 30), (255, 210, 60), (255, 255, 255)], dtype=float)


class SurpriseMaps:
    """A PNG for each image, one after the other, in `folder`."""

    def __init__(self, folder: Path, processor):
        self.folder = folder
        self.processor = processor
        self.num_saved = 0

    def save(self, batch: Batch, nll_maps) -> None:
        """Of B images, with the nats (B, S) of their patches."""
        images = self.processor.pixels_to_images(batch.pixel_values)
        for item, image, nll_map in zip(batch.items, images, nll_maps.numpy(), strict=True):
            save(surprise(image, nll_map), self.folder / file_name(self.num_saved, item.name))
            self.num_saved += 1


def surprise(image: Image.Image, nll_map: np.ndarray) -> Image.Image:
    """An image as the model sees it, and beside it the same with its patches (S,) in nats: the brighter, the less
    expected, between the least and the most expected patch of the image."""
    side = math.isqrt(len(nll_map))
    spread = nll_map.max() - nll_map.min()
    shares = (nll_map - nll_map.min()) / (spread or 1)
    stops = np.linspace(0, 1, len(_HEAT))
    heat = np.stack([np.interp(shares, stops, channel) for channel in _HEAT.T], axis=-1).reshape(side, side, 3)
    heat = Image.fromarray(heat.round().astype("uint8")).resize(image.size, Image.Resampling.NEAREST)
    image = image.convert("RGB")
    return sheet([image, Image.blend(image, heat, 0.6)], num_columns=2, height=256)
