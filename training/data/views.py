"""
Views of a batch, drawn on the device the batch is on.

Shape letters: B batch, V views, C channels, H height, W width.
"""

import kornia.augmentation as K
import torch
from torch import nn

from modeling_hybrid.levels import levels_to_pixels
from modeling_hybrid.objectives.base import AUGMENTED, CLEAN, LOCAL

from ..config import AugmentationConfig


class Views(nn.Module):
    """
    Levels (B, C, H, W), integers in 0..num_levels-1, -> what the model takes of their views: `pixel_values`
    (V, B, C, H, W) in [-1, 1], `view_kinds` (V,), and with `with_boxes` the `boxes` (V, B, 4).

    Clean views are the image itself; each augmented view of each image draws its own values, and so does each local
    one, which is cut out of the image first. Draws come from torch's default generator, so seeding it (and restoring
    its state) repeats them.

    Args:
        with_boxes: whether to say which part of its image each view shows; geometry must keep edges upright then.
    """

    def __init__(self, config: AugmentationConfig, image_size: int, num_levels: int, with_boxes: bool = False):
        super().__init__()
        self.num_levels = num_levels
        self.with_boxes = with_boxes
        self.augment = augmentations(config, image_size, config.crop_area)
        self.augment_local = augmentations(config, image_size, config.local_crop_area)
        self.operations = {CLEAN: nn.Sequential(), AUGMENTED: self.augment, LOCAL: self.augment_local}
        # No buffer: they stay on the CPU, where the objective reads them without waiting for an accelerator.
        self.kinds = torch.tensor(config.view_kinds())

    @torch.no_grad()
    def forward(self, levels: torch.Tensor) -> dict[str, torch.Tensor]:
        images = levels_to_pixels(levels, self.num_levels)
        views, boxes = [], []
        for kind in self.kinds.tolist():
            view, operations = images, self.operations[kind]
            if kind != CLEAN:
                view = operations((images + 1) / 2).clamp(0, 1) * 2 - 1
            views.append(view)
            if self.with_boxes:
                boxes.append(shown_boxes(operations, images))
        inputs = {"pixel_values": torch.stack(views), "view_kinds": self.kinds}
        return inputs | {"boxes": torch.stack(boxes)} if self.with_boxes else inputs


def shown_boxes(operations: nn.Sequential, images: torch.Tensor) -> torch.Tensor:
    """
    Which part of images (B, C, H, W) the last call of `operations` has left: left, top, right and bottom edge in the
    image, whose sides are 0 and 1, (B, 4). A mirrored image has its left edge right of its right one.
    """
    height, width = images.shape[-2:]
    to_view = torch.eye(3, device=images.device).expand(len(images), 3, 3)
    for operation in operations:
        if isinstance(operation, K.GeometricAugmentationBase2D):
            to_view = operation.transform_matrix @ to_view
    # kornia counts from the centre of the first pixel.
    edges = torch.tensor([[-0.5, -0.5, 1], [width - 0.5, height - 0.5, 1]], device=images.device)
    corners = (torch.linalg.inv(to_view) @ edges.T)[:, :2].transpose(1, 2)
    return ((corners + 0.5) / torch.tensor([width, height], device=images.device)).flatten(1)


def augmentations(config: AugmentationConfig, image_size: int, crop_area: list[float]) -> nn.Sequential:
    """The operations that `config` switches on, in the order geometry, colour, noise, erasing; images in [0, 1]."""
    operations: list[nn.Module] = []
    size = (image_size, image_size)
    if crop_area:
        operations.append(K.RandomResizedCrop(size, scale=tuple(crop_area), ratio=tuple(config.crop_aspect)))
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
