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


class ProjectorsOfKinds(nn.Module):
    """A projector of its own for each kind of view (clip-rocket, Fini et al. 2023, arXiv 2305.08675)."""

    def __init__(self, config: HybridConfig, in_features: int):
        super().__init__()
        self.projectors = nn.ModuleList(Projector(config, in_features) for _ in range(config.num_view_kinds))

    def forward(self, features: torch.Tensor, view_kinds: torch.Tensor) -> torch.Tensor:
        """Features (V, B, P) and the kinds (V,) of the views -> rows of length one (V, B, projection_dim)."""
        return torch.stack(
            [self.projectors[kind](rows) for kind, rows in zip(view_kinds.tolist(), features, strict=True)]
        )
