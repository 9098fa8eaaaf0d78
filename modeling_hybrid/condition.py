"""
What the decoder is told about an image beside its tag and the patches so far: its features, or nothing; or its latent.

Shape letters: B images, P width of the pooled feature, Z width of the latent, D hidden size.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributions import Independent, Normal
from transformers import initialization as init

from .configuration_hybrid import HybridConfig
from .likelihood import at_least_float32


# Without a floor, a density of latents grows without bound as they lose their variance.
MIN_LOG_VARIANCE = -6.0

# Features of images (B, P); or, where only some images are given any, a row (P,) or `None` for each.
Features = torch.Tensor | Sequence[torch.Tensor | None]


class FeatureCondition(nn.Module):
    """
    Features (B, P) -> vectors (B, D), which the layers of the decoder are told ([`transformer.HybridToldLayer`]).

    They do the same at every position, so no cache and no mask has to know of them, and p(image | features) is as exact
    as p(image), where the learnt vector `nothing` is told instead. Features are standardised, each row for itself:
    their length has no meaning, and noise on them has a unit. What the layers make of them starts at zero, so that a
    decoder which is given this module says what it said before.

    Latents (B, Z) have the unit of their prior, are taken as they are, and always given.
    """

    def __init__(self, config: HybridConfig):
        super().__init__()
        self.config = config
        self.projection = nn.Linear(config.condition_size, config.hidden_size)
        self.nothing = None if config.has_latent else nn.Parameter(torch.empty(config.hidden_size))

    def start_weights(self):
        if self.nothing is not None:
            init.zeros_(self.nothing)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        rows = features.to(self.projection.weight.dtype)
        if not self.config.has_latent:
            rows = nn.functional.layer_norm(rows, rows.shape[-1:], eps=self.config.layer_norm_eps)
        if self.training and self.config.condition_noise > 0:
            rows = rows + self.config.condition_noise * torch.randn_like(rows)
        return self.projection(rows)


class GaussianLatent(nn.Module):
    """
    Features (..., P) -> q(z | image), a Gaussian of Z independent numbers for each image. The prior of z is standard.
    """

    def __init__(self, config: HybridConfig):
        super().__init__()
        self.statistics = nn.Linear(config.pooled_size, 2 * config.projection_dim)

    def forward(self, features: torch.Tensor) -> Independent:
        mean, log_variance = at_least_float32(self.statistics(features)).chunk(2, dim=-1)
        log_variance = MIN_LOG_VARIANCE + nn.functional.softplus(log_variance - MIN_LOG_VARIANCE)
        return Independent(Normal(mean, (log_variance / 2).exp(), validate_args=False), 1)


def log_prior(latents: torch.Tensor) -> torch.Tensor:
    """log p(z) of latents (..., Z), in nats, (...)."""
    return Normal(0.0, 1.0).log_prob(latents).sum(dim=-1)
