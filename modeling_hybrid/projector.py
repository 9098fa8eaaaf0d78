"""Pooled features -> the contrastive space. Used in pre-training only; probes read the features before it."""

import torch
from torch import nn

from .configuration_hybrid import HybridConfig
from .likelihood import at_least_float32


class Projector(nn.Module):
    """
    Three linear layers: (B, pooled_size) -> rows of length one (B, projection_dim), in fp32.

    Layer norm instead of batch norm: a sample's projection must not depend on which samples share its device.
    """

    def __init__(self, config: HybridConfig):
        super().__init__()
        width = config.projection_hidden_size
        self.layers = nn.Sequential(
            nn.Linear(config.pooled_size, width),
            nn.LayerNorm(width, eps=config.layer_norm_eps),
            nn.GELU(),
            nn.Linear(width, width),
            nn.LayerNorm(width, eps=config.layer_norm_eps),
            nn.GELU(),
            nn.Linear(width, config.projection_dim),
        )

    def forward(self, pooler_output: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(at_least_float32(self.layers(pooler_output)), dim=-1)
