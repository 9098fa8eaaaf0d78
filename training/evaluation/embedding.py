"""
Images -> features and likelihoods, batch by batch.

Shape letters: N images, C channels, H height, W width, P width of the pooled feature, Q that of the regional means.
"""

from dataclasses import dataclass

import numpy as np
import torch

from modeling_hybrid import HybridForImageGeneration
from modeling_hybrid.pooling import RegionalPooling


@dataclass
class Embedding:
    """
    Args:
        features: (N, P) pooled features.
        regions: (N, Q) means of the encoder's states over regions, whatever the pooling: what the detector looks at.
        nll: (N,) nats per image under the clean tag, or `None` where the model has no likelihood.
    """

    features: np.ndarray
    regions: np.ndarray
    nll: np.ndarray | None


def levels_to_pixels(levels: torch.Tensor, num_levels: int) -> torch.Tensor:
    """Levels (N, C, H, W) in 0..num_levels-1 -> pixel_values in [-1, 1]."""
    return levels.float() * (2 / (num_levels - 1)) - 1


@torch.no_grad()
def embed(
    model: HybridForImageGeneration, levels: torch.Tensor, batch_size: int, with_likelihood: bool = True
) -> Embedding:
    """
    Features and likelihoods of levels (N, C, H, W); the model is put in evaluation mode and left in it.

    The likelihood is skipped where `with_likelihood` is false, and where the model has none.
    """
    model.eval()
    scored = (
        with_likelihood and model.config.encoder_attention != "bidirectional" and model.config.generative_weight > 0
    )
    average = RegionalPooling(model.config)
    features, regions, nll = [], [], []
    for batch in levels.split(batch_size):
        pixel_values = levels_to_pixels(batch.to(model.device), model.config.num_levels)
        output = model.encoder(pixel_values)
        features.append(output.pooler_output.float().cpu())
        regions.append(average(output.last_hidden_state).float().cpu())
        if scored:
            nll.append(-model.log_likelihood(pixel_values).float().cpu())
    rows = (torch.cat(parts).numpy() for parts in (features, regions))
    return Embedding(*rows, torch.cat(nll).numpy() if scored else None)
