"""
What a subpixel can be: one of `num_levels` levels, 0..num_levels-1. The only formulas between levels, `pixel_values` in
[-1, 1] and shares in [0, 1].

Levels are uint8 tensors of any shape; the way there and back is exact.
"""

import torch


def levels_to_pixels(levels: torch.Tensor, num_levels: int) -> torch.Tensor:
    """Levels -> pixel_values in [-1, 1], fp32."""
    return levels.float() * (2 / (num_levels - 1)) - 1


def pixels_to_levels(pixel_values: torch.Tensor, num_levels: int) -> torch.Tensor:
    """pixel_values in [-1, 1] -> the nearest levels; what lies outside becomes the first or the last level."""
    levels = ((pixel_values.float() + 1) * ((num_levels - 1) / 2)).round()
    return levels.clamp_(0, num_levels - 1).to(torch.uint8)


def nearest_levels(pixel_values: torch.Tensor, num_levels: int) -> torch.Tensor:
    """pixel_values -> those of the nearest levels, in [-1, 1]."""
    levels = ((pixel_values + 1) * ((num_levels - 1) / 2)).round_().clamp_(0, num_levels - 1)
    return levels.mul_(2 / (num_levels - 1)).sub_(1)


def levels_to_shares(levels: torch.Tensor, num_levels: int) -> torch.Tensor:
    """Levels -> shares of the range, black 0 to white 1, fp32."""
    return levels.float() / (num_levels - 1)


def shares_to_levels(shares: torch.Tensor, num_levels: int) -> torch.Tensor:
    """Shares of the range -> the nearest levels; what lies outside [0, 1] becomes the first or the last level."""
    return (shares.clamp(0, 1) * (num_levels - 1)).round().to(torch.uint8)


def change_levels(levels: torch.Tensor, num_levels: int, new_num_levels: int) -> torch.Tensor:
    """Levels of one number -> the nearest ones of another; a byte is one of 256."""
    return (levels.float() * ((new_num_levels - 1) / (num_levels - 1))).round().to(torch.uint8)
