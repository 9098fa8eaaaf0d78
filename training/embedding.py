"""
Images -> features and likelihoods, batch by batch.

Shape letters: N images, C channels, H height, W width, P width of the pooled feature, Q that of the regional means.
"""

from dataclasses import dataclass

import numpy as np
import torch

from modeling_hybrid import HybridForImageClassification, HybridForImageGeneration
from modeling_hybrid.patch_codes import levels_to_codes
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


@torch.no_grad()
def embed(
    model: HybridForImageGeneration | HybridForImageClassification,
    levels: torch.Tensor,
    batch_size: int,
    with_likelihood: bool = True,
) -> Embedding:
    """
    Features and likelihoods of levels (N, C, H, W), in one pass; the model is put in evaluation mode and left in it.

    The likelihood is skipped where `with_likelihood` is false, and where the model has none.
    """
    model.eval()
    scored = with_likelihood and model.config.has_likelihood
    average = RegionalPooling(model.config)
    features, regions, nll = [], [], []
    for batch in levels.split(batch_size):
        codes = levels_to_codes(batch.to(model.device), model.config)
        if scored:
            states, values = model.measure(codes, torch.zeros_like(codes[:, 0, 0]))
            nll.append(values.float().cpu())
        else:
            states = model.encoder(codes=codes).last_hidden_state
        features.append(model.encoder.pooler(states).float().cpu())
        regions.append(average(states).float().cpu())
    rows = (torch.cat(parts).numpy() for parts in (features, regions))
    return Embedding(*rows, torch.cat(nll).numpy() if scored else None)
