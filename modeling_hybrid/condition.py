"""
What the decoder is told about an image beside its tag and the patches so far: its features, or nothing.

Shape letters: B images, P width of the pooled feature, D hidden size.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init

from .configuration_hybrid import HybridConfig


# Features of images (B, P); or, where only some images are given any, a row (P,) or `None` for each.
Features = torch.Tensor | Sequence[torch.Tensor | None]


class FeatureCondition(nn.Module):
    """
    Features (B, P) -> vectors (B, D), one of which is added to every state that enters the decoder.

    It is the same at every position, so no cache and no mask has to know of it, and p(image | features) is as exact as
    p(image), where the learnt vector `nothing` is added instead. Features are standardised, each row for itself: their
    length has no meaning, and noise on them has a unit. Everything starts at zero, so that a decoder which is given
    this module says what it said before.
    """

    def __init__(self, config: HybridConfig):
        super().__init__()
        self.config = config
        self.projection = nn.Linear(config.pooled_size, config.hidden_size)
        self.nothing = nn.Parameter(torch.empty(config.hidden_size))

    def start_weights(self):
        for parameter in self.parameters():
            init.zeros_(parameter)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = features.to(self.projection.weight.dtype)
        rows = nn.functional.layer_norm(features, features.shape[-1:], eps=self.config.layer_norm_eps)
        if self.training and self.config.condition_noise > 0:
            rows = rows + self.config.condition_noise * torch.randn_like(rows)
        return self.projection(rows)
