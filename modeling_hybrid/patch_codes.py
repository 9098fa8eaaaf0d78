"""
pixel_values <-> levels <-> codes, and codes -> embeddings.

Shape letters: B batch, C channels, H height, W width, S patches, K codes of a patch, T positions of a sequence
(T = S + 1 with the tag in front), D hidden size.
"""

import torch
from torch import nn
from transformers import initialization as init

from .configuration_hybrid import HybridConfig
from .levels import levels_to_pixels, pixels_to_levels


def check(condition: torch.Tensor, message: str) -> None:
    """
    Raise `ValueError(message)` unless the boolean tensor `condition` (shape `()`) is true.

    On an accelerator the check is queued with the other kernels, so nothing waits for it.
    """
    if condition.device.type == "cpu" and not torch.compiler.is_compiling():
        if not condition:
            raise ValueError(message)
    else:
        torch._assert_async(condition, message)


def pixels_to_codes(pixel_values: torch.Tensor, config: HybridConfig) -> torch.Tensor:
    """
    Round each subpixel to its nearest level, and cut the image into patches.

    Args:
        pixel_values: (B, C, H, W) in [-1, 1].

    Returns:
        codes (B, S, K), integers in 0..num_levels-1; patches in raster order, and inside a patch row by row, the
        channels of a pixel together.

    Raises:
        ValueError: no image, another number of channels, another size, or a value outside [-1, 1] (NaN included).
    """
    expected = (config.num_channels, config.image_size, config.image_size)
    if pixel_values.dim() != 4 or pixel_values.shape[1:] != expected:
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}, expected (batch, {', '.join(map(str, expected))}); "
            "let the image processor of the checkpoint prepare the images."
        )
    if pixel_values.shape[0] == 0:
        raise ValueError(f"pixel_values has shape {tuple(pixel_values.shape)}: no image; pass one or more.")
    pixel_values = pixel_values.float()
    check(
        (pixel_values.abs() <= 1.001).all(),
        "pixel_values holds a value outside [-1, 1] (or NaN); let the image processor of the checkpoint prepare the "
        "images, or clamp what your own transform gives.",
    )
    return levels_to_codes(pixels_to_levels(pixel_values, config.num_levels), config)


def levels_to_codes(levels: torch.Tensor, config: HybridConfig) -> torch.Tensor:
    """Cut levels (B, C, H, W) into patches: codes (B, S, K), integers, in the order that [`pixels_to_codes`] gives."""
    side, p = config.image_size // config.patch_size, config.patch_size
    patches = levels.reshape(-1, config.num_channels, side, p, side, p)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(-1, config.num_patches, config.num_codes).long()


def codes_to_levels(codes: torch.Tensor, config: HybridConfig) -> torch.Tensor:
    """The exact inverse of [`levels_to_codes`]: codes (B, S, K) -> levels (B, C, H, W)."""
    side, p, channels = config.image_size // config.patch_size, config.patch_size, config.num_channels
    patches = codes.reshape(-1, side, side, p, p, channels).permute(0, 5, 1, 3, 2, 4)
    return patches.reshape(-1, channels, config.image_size, config.image_size).to(torch.uint8)


def codes_to_pixels(codes: torch.Tensor, config: HybridConfig) -> torch.Tensor:
    """
    The exact inverse of [`pixels_to_codes`] on the grid of levels: codes (B, S, K) -> pixel_values (B, C, H, W).
    """
    return levels_to_pixels(codes_to_levels(codes, config), config.num_levels)


def check_codes(codes: torch.Tensor, config: HybridConfig) -> None:
    """Raise `ValueError` unless codes is (B, at most S, K), integers in 0..num_levels-1."""
    if codes.dtype != torch.long:
        raise ValueError(f"codes has dtype {codes.dtype}, expected torch.int64; call .long() on it.")
    if codes.dim() != 3 or codes.shape[1] > config.num_patches or codes.shape[2] != config.num_codes:
        raise ValueError(
            f"codes has shape {tuple(codes.shape)}, expected (batch, at most {config.num_patches}, {config.num_codes})."
        )
    check(
        ((codes >= 0) & (codes < config.num_levels)).all(),
        f"codes holds a value outside 0..{config.num_levels - 1} (num_levels={config.num_levels}).",
    )


def ordinal_table(num_levels: int, size: int) -> torch.Tensor:
    """(num_levels, size) cosines of growing frequency, of mean zero: neighbouring levels start with similar rows."""
    level = (torch.arange(num_levels) + 0.5) / num_levels
    frequency = 1 + torch.arange(size) % (num_levels - 1)
    return torch.cos(torch.pi * level[:, None] * frequency)


def sincos_table(side: int, size: int) -> torch.Tensor:
    """
    (side * side, size) sines and cosines of row and column, for a square grid in raster order.

    The mean over the grid is taken out: it would be a part that the features of all images share.
    """
    frequency = 1.0 / 100 ** (torch.arange(size // 4) / (size // 4))
    angle = torch.arange(side)[:, None] * frequency
    one_axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows = one_axis[:, None].expand(side, side, -1)
    columns = one_axis[None].expand(side, side, -1)
    table = torch.cat([rows, columns], dim=-1).reshape(side * side, size)
    return table - table.mean(dim=0)


class HybridEmbeddings(nn.Module):
    """[tag of the view, patch 1, ..., patch S] as vectors: codes (B, S', K) -> (B, T, D)."""

    def __init__(self, config: HybridConfig):
        super().__init__()
        self.config = config
        self.view_tag = nn.Embedding(config.num_view_kinds, config.hidden_size)
        self.code_embedding = nn.Embedding(config.num_levels, config.code_embedding_size)
        self.patch_projection = nn.Linear(config.num_codes * config.code_embedding_size, config.hidden_size)
        self.position_embedding = nn.Parameter(torch.empty(config.num_patches, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout)

    def start_weights(self):
        init.normal_(self.view_tag.weight, std=1.0)
        init.copy_(self.code_embedding.weight, ordinal_table(*self.code_embedding.weight.shape))
        # Patches and positions start at about the same size, so that neither drowns the other.
        init.normal_(self.patch_projection.weight, std=self.patch_projection.in_features**-0.5)
        init.copy_(self.position_embedding, sincos_table(round(self.config.num_patches**0.5), self.config.hidden_size))

    def forward(
        self, codes: torch.Tensor | None, view_kinds: torch.Tensor | None, first_patch: int | torch.Tensor
    ) -> torch.Tensor:
        """
        Args:
            codes: (B, S', K) codes of consecutive patches, or `None` for the tag alone.
            view_kinds: (B,) the tag to put in front, or `None` to continue a sequence.
            first_patch: number of the patch that `codes` starts with.
        """
        parts = []
        if view_kinds is not None:
            parts.append(self.view_tag(view_kinds)[:, None])
        if codes is not None:
            positions = first_patch + torch.arange(codes.shape[1], device=codes.device)
            parts.append(self.patches(codes) + self.position_embedding[positions])
        return self.dropout(torch.cat(parts, dim=1))

    def patches(self, codes: torch.Tensor) -> torch.Tensor:
        """Patches by themselves, without position: codes (B, S', K) -> (B, S', D)."""
        return self.patch_projection(self.code_embedding(codes).flatten(2))
