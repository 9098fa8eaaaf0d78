"""
Nine common corruptions, each in five severities, of images of any size.

After Hendrycks and Dietterich (2019), Benchmarking Neural Network Robustness to Common Corruptions and Perturbations,
arXiv 1903.12261. What differs: theirs are made for photographs of 224x224. Here every length is a share of the side, so
that 8x8 and 32x32 are hurt alike; weather, lens and motion, which mean nothing on drawn characters, give way to
occlusion, translation and rotation; and brightness goes both ways.

Shape letters: N images, C channels, H height, W width.
"""

import io
from collections.abc import Callable

import numpy as np
import torch
from kornia.filters import gaussian_blur2d
from kornia.geometry.transform import rotate, translate
from PIL import Image
from torch.nn.functional import interpolate

from modeling_hybrid.levels import levels_to_shares, shares_to_levels


# Images (N, C, H, W) in [0, 1], a strength and the source of chance -> images, which may leave [0, 1].
Operation = Callable[[torch.Tensor, float, torch.Generator], torch.Tensor]
# Levels (N, C, H, W), their number, a severity and the source of chance -> levels.
Corruption = Callable[[torch.Tensor, int, int, torch.Generator], torch.Tensor]
SEVERITIES = (1, 2, 3, 4, 5)


def gaussian_noise(images: torch.Tensor, std: float, generator: torch.Generator) -> torch.Tensor:
    return images + std * torch.randn(images.shape, generator=generator)


def blur(images: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Gaussian; the standard deviation is `share` of the side."""
    sigmas = [share * side for side in images.shape[-2:]]
    return gaussian_blur2d(images, tuple(2 * int(3 * sigma + 1) + 1 for sigma in sigmas), tuple(sigmas))


def contrast(images: torch.Tensor, kept: float, generator: torch.Generator) -> torch.Tensor:
    """What is left of the distance of each subpixel from the mean of its image and channel."""
    mean = images.mean(dim=(2, 3), keepdim=True)
    return mean + kept * (images - mean)


def brightness(images: torch.Tensor, shift: float, generator: torch.Generator) -> torch.Tensor:
    """
    Every image is made lighter or darker, by chance: were all made lighter, images on black would lose their background
    and those on white their strokes, and the two could not be compared.
    """
    return images + shift * _random_signs(len(images), generator)[:, None, None, None]


def occlusion(images: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """A box of `share` of each side, anywhere inside; grey, so that neither a black nor a white background hides it."""

    def covered(side: int) -> torch.Tensor:
        start = torch.rand(len(images), generator=generator) * (1 - share) * side
        return _overlap(start, share * side, side)

    height, width = images.shape[-2:]
    box = covered(height)[:, None, :, None] * covered(width)[:, None, None, :]
    return images + box * (0.5 - images)


def translation(images: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """By `share` of the side in any direction; the pixels of the border fill what is left open."""
    angle = 2 * torch.pi * torch.rand(len(images), generator=generator)
    height, width = images.shape[-2:]
    shift = share * torch.stack([width * angle.cos(), height * angle.sin()], dim=1)
    return translate(images, shift, padding_mode="border")


def rotation(images: torch.Tensor, degrees: float, generator: torch.Generator) -> torch.Tensor:
    """To the left or to the right; the pixels of the border fill what is left open."""
    return rotate(images, degrees * _random_signs(len(images), generator), padding_mode="border")


def jpeg(images: torch.Tensor, quality: int, generator: torch.Generator) -> torch.Tensor:
    """Written and read by PIL at a quality of 1 to 95."""
    pixels = shares_to_levels(images, 256).permute(0, 2, 3, 1).numpy()
    decoded = []
    for picture in pixels:
        file = io.BytesIO()
        Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(file, "jpeg", quality=quality)
        decoded.append(np.array(Image.open(file)).reshape(picture.shape))
    return levels_to_shares(torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2), 256)


def pixelate(images: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Averaged over a grid of `share` of the pixels of each side, and enlarged again without smoothing."""

    def cells(side: int) -> torch.Tensor:
        num = max(1, round(share * side))
        return _overlap(torch.arange(num) * side / num, side / num, side) * num / side

    height, width = images.shape[-2:]
    coarse = cells(height) @ images @ cells(width).T
    return interpolate(coarse, (height, width), mode="nearest")


def _random_signs(num: int, generator: torch.Generator) -> torch.Tensor:
    return 2.0 * torch.randint(2, (num,), generator=generator) - 1


def _overlap(start: torch.Tensor, length: float, side: int) -> torch.Tensor:
    """How much of each of `side` pixels the stretches cover that begin at `start` (num,), from 0 to 1, (num, side)."""
    pixel = torch.arange(side)
    start = start[:, None]
    return (torch.minimum(pixel + 1, start + length) - torch.maximum(pixel, start)).clamp(0, 1)


def graded(operation: Operation, *strengths: float) -> Corruption:
    """`operation` on levels, with a strength for each severity from 1."""
    severities = tuple(range(1, len(strengths) + 1))

    def corrupt(levels: torch.Tensor, num_levels: int, severity: int, generator: torch.Generator) -> torch.Tensor:
        if severity not in severities:
            raise ValueError(f"severity={severity!r} is not one of {severities}.")
        images = operation(levels_to_shares(levels, num_levels), strengths[severity - 1], generator)
        return shares_to_levels(images, num_levels)

    return corrupt


# By name: levels (N, C, H, W) uint8 in 0..num_levels-1, `num_levels`, `severity` and a generator -> levels of the same
# shape. Every image draws its own noise, place and direction, and a generator of the same seed draws the same ones at
# every severity. Mild at 1, hard but mostly legible to a person at 5; only pixelation of 8x8 is hard from the start.
CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": graded(gaussian_noise, 0.05, 0.1, 0.15, 0.2, 0.3),
    "blur": graded(blur, 0.04, 0.05, 0.06, 0.07, 0.08),
    "contrast": graded(contrast, 0.7, 0.5, 0.4, 0.3, 0.2),
    "brightness": graded(brightness, 0.1, 0.18, 0.25, 0.32, 0.4),
    "occlusion": graded(occlusion, 0.2, 0.275, 0.35, 0.425, 0.5),
    "translation": graded(translation, 0.04, 0.08, 0.12, 0.16, 0.2),
    "rotation": graded(rotation, 8, 16, 24, 32, 40),
    "jpeg": graded(jpeg, 50, 25, 15, 10, 7),
    "pixelate": graded(pixelate, 0.85, 0.72, 0.6, 0.5, 0.4),
}
