"""Encoder states of the patches -> one feature vector per image.

Shape letters: B batch, S patches, D hidden size, H heads, R regions a side.
"""

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask

from .configuration_hybrid import HybridConfig
from .transformer import HybridLayer


class MeanPooling(nn.Module):
    """The mean over all patches: (B, S, D) -> (B, D)."""

    def __init__(self, config: HybridConfig):
        super().__init__()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.mean(dim=1)


class RegionalPooling(nn.Module):
    """
    The means over R x R regions of the image, joined: (B, S, D) -> (B, R * R * D). Where R does not divide the number
    of patches a side, neighbouring regions share patches. The more regions, the more of where things are is kept.
    """

    def __init__(self, config: HybridConfig):
        super().__init__()
        self.grid = config.pooling_grid
        self.side = config.image_size // config.patch_size

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        patches = hidden_states.transpose(1, 2).unflatten(2, (self.side, self.side))
        regions = nn.functional.adaptive_avg_pool2d(patches, self.grid)  # (B, D, R, R)
        return regions.permute(0, 2, 3, 1).flatten(1)


class ContextualPooling(RegionalPooling):
    """
    A layer of its own, in which every patch sees every other, then the means over regions: (B, S, D) -> (B, R * R * D).
    What only the features need is learnt here, and not in layers that the likelihood shares.
    """

    def __init__(self, config: HybridConfig):
        super().__init__(config)
        self.config = config
        self.layer = HybridLayer(config, layer_idx=0)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden_states, attention_mask=None)
        return super().forward(self.norm(self.layer(hidden_states, mask, is_causal=False)))


class AttentionPooling(nn.Module):
    """Each head averages its share of the channels with weights of its own over the patches: (B, S, D) -> (B, D)."""

    def __init__(self, config: HybridConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.score = nn.Linear(config.hidden_size, self.num_heads)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        weights = self.score(hidden_states).softmax(dim=1)
        # The weights sum to one, so averaging first and projecting the averages is the same, for S times less work.
        averages = weights.transpose(1, 2) @ hidden_states  # (B, H, D)
        # By a call, and not with parts of its weight, which a quantised layer does not have: head h keeps its share.
        values = self.value(averages).unflatten(2, (self.num_heads, -1))  # (B, H, H, D / H)
        return values.diagonal(dim1=1, dim2=2).transpose(1, 2).flatten(1)


POOLINGS = {
    "attention": AttentionPooling,
    "contextual": ContextualPooling,
    "mean": MeanPooling,
    "regional": RegionalPooling,
}
