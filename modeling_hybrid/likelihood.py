"""From logits to nats, and from nats to bits per dimension."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from .configuration_hybrid import HybridConfig


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in fp32, or in fp64 where it has that already: losses are not computed in half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def in_chunks(size: int, *rows: torch.Tensor) -> Iterable[tuple[torch.Tensor, ...]]:
    """
    Tensors of equal length, `size` rows at a time; all at once in a program that is exported, as the number of chunks
    would fix that of the images.
    """
    if torch.compiler.is_exporting():
        return [rows]
    return zip(*(each.split(max(1, size)) for each in rows), strict=True)


def code_nll(logits: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each code in nats: logits (..., num_levels), codes (...) -> (...), fp32 at least."""
    flat = at_least_float32(logits).flatten(0, -2)
    return nn.functional.cross_entropy(flat, codes.flatten(), reduction="none").view(codes.shape)


def bits_per_dim(nll: torch.Tensor, config: HybridConfig) -> torch.Tensor:
    """
    Bits per dimension of images with the likelihood `nll` (nats per image): nll / (ln 2 * C * H * W).

    The denominator is the number of subpixels. The codes are those subpixels, each at one of `num_levels` values, so
    nothing is lost between image and codes; values compare only between equal `num_levels` and image sizes.
    """
    return nll / (math.log(2) * config.num_dims)
