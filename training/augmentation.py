"""
Views of a batch, drawn on the device the batch is on.

Shape letters: B batch, V views, C channels, H height, W width.
"""

import kornia.augmentation as K
import torch
from torch import nn

from .config import AugmentationConfig
from .evaluation.embedding import levels_to_pixels


CLEAN, AUGMENTED = 0, 1


class Views(nn.Module):
    """
    Levels (B, C, H, W), integers in 0..num_levels-1, -> pixel_values (V, B, C, H, W) in [-1, 1] and their kinds (V,).

    Clean views are the image itself; each augmented view of each image draws its own values. Draws come from torch's
    default generator, so seeding it (and restoring its state) repeats them.
    """

    def __init__(self, config: AugmentationConfig, image_size: int, num_levels: int):
        super().__init__()
        self.num_clean_views, self.num_augmented_views = config.num_clean_views, config.num_augmented_views
        self.num_levels = num_levels
        self.augment = augmentations(config, image_size)
        kinds = [CLEAN] * self.num_clean_views + [AUGMENTED] * self.num_augmented_views
        self.register_buffer("kinds", torch.tensor(kinds), persistent=False)

    @torch.no_grad()
    def forward(self, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pixel_values = levels_to_pixels(levels, self.num_levels)
        views = [pixel_values.expand(self.num_clean_views, *pixel_values.shape)]
        if self.num_augmented_views:
            images = (pixel_values + 1) / 2
            augmented = self.augment(images.repeat(self.num_augmented_views, 1, 1, 1)).clamp(0, 1) * 2 - 1
            views.append(augmented.unflatten(0, (self.num_augmented_views, -1)))
        return torch.cat(views), self.kinds


def augmentations(config: AugmentationConfig, image_size: int) -> nn.Module:
    """The operations that `config` switches on, in the order geometry, colour, noise, erasing; images in [0, 1]."""
    operations: list[nn.Module] = []
    size = (image_size, image_size)
    if config.crop_area:
        operations.append(K.RandomResizedCrop(size, scale=tuple(config.crop_area), ratio=tuple(config.crop_aspect)))
    if config.flip_probability:
        operations.append(K.RandomHorizontalFlip(p=config.flip_probability))
    if config.rotation_degrees or config.shift or config.scale or config.shear_degrees:
        operations.append(
            K.RandomAffine(
                degrees=config.rotation_degrees,
                translate=(config.shift, config.shift),
                scale=tuple(config.scale) or None,
                shear=config.shear_degrees or None,
                padding_mode=config.padding,
                p=1.0,
            )
        )
    if config.brightness or config.contrast or config.saturation or config.hue:
        jitter = (config.brightness, config.contrast, config.saturation, config.hue)
        operations.append(K.ColorJitter(*jitter, p=config.jitter_probability))
    if config.grey_probability:
        operations.append(K.RandomGrayscale(p=config.grey_probability))
    if config.gamma:
        operations.append(K.RandomGamma(gamma=tuple(config.gamma), p=1.0))
    if config.blur_sigma:
        operations.append(K.RandomGaussianBlur((3, 3), tuple(config.blur_sigma), p=config.blur_probability))
    if config.noise:
        operations.append(K.RandomGaussianNoise(std=config.noise, p=1.0))
    if config.erase_area:
        operations.append(K.RandomErasing(scale=tuple(config.erase_area), p=config.erase_probability))
    return nn.Sequential(*operations)
