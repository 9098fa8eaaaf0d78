"""Features -> the contrastive space. Used in pre-training only; probes read the features before it."""

import torch
from torch import nn

from .configuration_hybrid import HybridConfig
from .likelihood import at_least_float32


class Projector(nn.Module):
    """
    Three linear layers: (..., in_features) -> rows of length one (..., projection_dim), in fp32.

    Layer norm instead of batch norm: a sample's projection must not depend on which samples share its device.
    """

    def __init__(self, config: HybridConfig, in_features: int):
        super().__init__()
        width = config.projection_hidden_size
        self.layers = nn.Sequential(
            nn.Linear(in_features, width),
            nn.LayerNorm(width, eps=config.layer_norm_eps),
            nn.GELU(),
            nn.Linear(width, width),
            nn.LayerNorm(width, eps=config.layer_norm_eps),
            nn.GELU(),
            nn.Linear(width, config.projection_dim),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(at_least_float32(self.layers(features)), dim=-1)
