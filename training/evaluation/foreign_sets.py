"""
Images that are not of the data, for the question whether a model notices.

Shape letters: n images, C channels, H height, W width.
"""

from collections.abc import Sequence

import datasets
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from modeling_hybrid import HybridImageProcessor
from modeling_hybrid.levels import levels_to_shares, shares_to_levels

from . import corruptions


# Made from images of the data, so that only the property they are named after gives them away.
NEAR = ("inverted", "dimmed", "rotated", "blended", "shuffled_blocks")
# Nothing of the data is in them.
FAR = ("noise", "constant", "photographs", "shapes", "digits")
# Changes in three strengths, from what hardly shows, for scores that were chosen by the sets above. The strengths were
# chosen on validation images of MNIST, so that the AUROCs of a model span .6 to .95.
SHIFTS = {
    "occlusion": corruptions.graded(corruptions.occlusion, 0.05, 0.1, 0.2),
    "contrast": corruptions.graded(corruptions.contrast, 0.9, 0.8, 0.6),
    "rotation": corruptions.graded(corruptions.rotation, 2, 8, 32),
    "translation": corruptions.graded(corruptions.translation, 0.01, 0.04, 0.12),
}


def foreign_sets(levels: torch.Tensor, num_levels: int, num_images: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """
    Images that are not of the data, by name of their kind ([`NEAR`] and [`FAR`]), each kind (n, C, H, W) levels with n
    at most `num_images`. The near ones are made from `levels`, images of the test split.

    "digits" is missing where the data are those digits.
    """
    generator = torch.Generator().manual_seed(seed)
    base = levels[torch.randperm(len(levels), generator=generator)[:num_images]]
    shape, top = base.shape, num_levels - 1

    def random_levels(*size: int) -> torch.Tensor:
        return torch.randint(0, num_levels, size, generator=generator, dtype=torch.uint8)

    partners = base[torch.randperm(len(base), generator=generator)]
    sets = {
        "noise": random_levels(*shape),
        "constant": random_levels(*shape[:2], 1, 1).expand(shape),
        "inverted": top - base,
        "dimmed": (base.float() / 2).round().to(torch.uint8),
        "rotated": base.rot90(1, dims=(2, 3)),
        "blended": ((base.float() + partners.float()) / 2).round().to(torch.uint8),
        "shuffled_blocks": _shuffle_blocks(base, generator),
        "photographs": _photographs(shape, num_levels, generator),
        "shapes": _shapes(shape, num_levels, generator),
    }
    digits = _digits(shape, num_levels)
    data_are_digits = (levels[:1] == digits).flatten(1).all(dim=1).any()
    if not data_are_digits:
        sets["digits"] = digits[torch.randperm(len(digits), generator=generator)[:num_images]]
    return sets


def shifted_sets(levels: torch.Tensor, num_levels: int, num_images: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """
    The same images under each of [`SHIFTS`], in every strength: (n, C, H, W) levels with n at most `num_images`, by
    names like "rotation 2".
    """
    base = levels[torch.randperm(len(levels), generator=torch.Generator().manual_seed(seed))[:num_images]]
    return {
        f"{name} {severity}": shift(base, num_levels, severity, torch.Generator().manual_seed(seed))
        for name, shift in SHIFTS.items()
        for severity in (1, 2, 3)
    }


def images_of_others(
    names: Sequence[str], image_processor: HybridImageProcessor, num_images: int, seed: int = 0
) -> dict[str, torch.Tensor]:
    """
    Test images of other data sets as levels (n, C, H, W), n at most `num_images`, by name of the set.

    Raises:
        ValueError: from [`load_foreign`].
    """

    def levels(images: datasets.Dataset) -> torch.Tensor:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:num_images])
        pictures = images.select(chosen)["image"]
        return image_processor(list(pictures), do_rescale=False, return_tensors="pt").pixel_values

    return {name.rstrip("/").split("/")[-1]: levels(load_foreign(name)) for name in names}


def load_foreign(name: str) -> datasets.Dataset:
    """
    The first column of images, called "image", of the split "test" of a data set that `datasets.load_dataset` knows by
    that name.

    Raises:
        ValueError: it cannot be loaded, or has no images.
    """
    try:
        rows = datasets.load_dataset(name, split="test")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"evaluation.foreign_datasets names {name!r}, whose test split cannot be loaded: {error}"
        ) from error
    columns = [column for column, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if not columns or not len(rows):
        raise ValueError(
            f"evaluation.foreign_datasets names {name!r}, whose test split has {len(rows)} rows and {len(columns)} "
            f"column(s) of images among {rows.features}; give a set of images, its column of type datasets.Image."
        )
    return rows.select_columns(columns[:1]).rename_columns({columns[0]: "image"} if columns[0] != "image" else {})


def _shuffle_blocks(levels: torch.Tensor, generator: torch.Generator, num_blocks: int = 4) -> torch.Tensor:
    """Each image cut into a grid of `num_blocks` x `num_blocks`, the blocks in random order."""
    n, channels, side, _ = levels.shape
    block = side // num_blocks
    kept = levels[..., : block * num_blocks, : block * num_blocks]
    blocks = kept.reshape(n, channels, num_blocks, block, num_blocks, block).permute(0, 2, 4, 1, 3, 5)
    blocks = blocks.reshape(n, num_blocks**2, channels, block, block)
    order = torch.rand(n, num_blocks**2, generator=generator).argsort(1)
    blocks = blocks[torch.arange(n)[:, None], order].view(n, num_blocks, num_blocks, channels, block, block)
    shuffled = levels.clone()
    shuffled[..., : block * num_blocks, : block * num_blocks] = blocks.permute(0, 3, 1, 4, 2, 5).reshape(kept.shape)
    return shuffled


def _photographs(shape: torch.Size, num_levels: int, generator: torch.Generator) -> torch.Tensor:
    """Random crops, a quarter to a half of the height, of the two photographs that scikit-learn ships, scaled down."""
    n, channels, side, _ = shape
    crops = []
    photographs = [
        levels_to_shares(torch.from_numpy(photo.copy()).permute(2, 0, 1), 256) for photo in load_sample_images().images
    ]
    for i in range(n):
        photo = photographs[i % len(photographs)]
        height, width = photo.shape[1:]
        size = int(height * (0.25 + 0.25 * torch.rand((), generator=generator).item()))
        y = int(torch.randint(0, height - size, (), generator=generator))
        x = int(torch.randint(0, width - size, (), generator=generator))
        crop = photo[:, y : y + size, x : x + size]
        crop = crop.mean(0, keepdim=True) if channels == 1 else crop
        crops.append(torch.nn.functional.interpolate(crop[None], size=(side, side), mode="area")[0])
    return shares_to_levels(torch.stack(crops), num_levels)


def _shapes(shape: torch.Size, num_levels: int, generator: torch.Generator) -> torch.Tensor:
    """
    A disc or a square of one colour on a smooth gradient between two others, all at random.

    Such images are simpler than nearly all data, and so more likely than the data itself to many a model of the data
    (Nalisnick et al. 2019, arXiv 1810.09136).
    """
    n, channels, side, _ = shape

    def uniform(*size: int) -> torch.Tensor:
        return torch.rand(n, *size, generator=generator)

    angle = 2 * torch.pi * uniform(1, 1)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij")
    # From 0 to 1 across the picture.
    share = ((x * angle.cos() + y * angle.sin()) / 2**0.5 + 1)[:, None] / 2
    start, end, colour = uniform(3, channels, 1, 1).unbind(1)
    background = start + share * (end - start)
    offsets = torch.stack([x, y]) - (uniform(2, 1, 1) - 0.5)
    radius = 0.3 + 0.4 * uniform(1, 1)
    is_disc = uniform(1, 1) < 0.5
    distance = torch.where(is_disc, offsets.norm(dim=1), offsets.abs().amax(dim=1))
    images = torch.where((distance < radius)[:, None], colour, background)
    return shares_to_levels(images, num_levels)


def _digits(shape: torch.Size, num_levels: int) -> torch.Tensor:
    """All handwritten digits of scikit-learn, converted as images of the data are."""
    _, channels, height, width = shape
    size = {"height": height, "width": width}
    processor = HybridImageProcessor(size=size, num_channels=channels, num_levels=num_levels)
    images = [Image.fromarray(image) for image in np.round(load_digits().images * (255 / 16)).astype(np.uint8)]
    return processor(images, do_rescale=False, return_tensors="pt").pixel_values
