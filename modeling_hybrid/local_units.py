"""
Units of a few layers, each with a contrastive loss of its own and no gradient from what comes after it.

Shape letters: N rows (views of images), S patches, D hidden size, P width of the pooled feature.
"""

from collections.abc import Iterator

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

from .configuration_hybrid import HybridConfig
from .pooling import POOLINGS
from .projector import Projector


class LocalUnits(nn.Module):
    """
    LoCo (Xiong, Ren and Urtasun 2020, arXiv 2008.01342), of which we have read the abstract and reviews alone. The
    layers of the encoder are cut into n stages F of equal depth, and a unit is two stages in a row, so that each stage
    but the first and the last learns from two units:

        for i in 1 .. n - 1:
            x_i = F_i(stop_gradient(x_{i-1}))                     # x_0: the embeddings
            loss += objective(project_i(pool_i(F_{i+1}(x_i)))) / (n - 1)

    All stages but the first run twice. Without `local_overlap` a unit is one stage, and the loss of it is that of x_i.
    Norm, pooling and projector of the last unit are those of the model, which outside of training is one without units.
    """

    def __init__(self, config: HybridConfig):
        super().__init__()
        self.config = config
        self.num_units = config.local_stages - config.local_overlap
        further = range(self.num_units - 1)
        self.norms = nn.ModuleList(nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in further)
        self.poolers = nn.ModuleList(POOLINGS[config.pooling](config) for _ in further)
        self.projectors = nn.ModuleList(Projector(config, config.pooled_size) for _ in further)

    def forward(
        self, model: nn.Module, codes: torch.Tensor, view_kinds: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """
        Pooled features (N, P) and projections (N, projection_dim) of each unit, which is computed when it is asked for.

        Args:
            model: with encoder and projector.
            codes: (N, S, K).
            view_kinds: (N,) tag of each row.
        """
        encoder, is_causal = model.encoder, self.config.features_are_causal
        states = encoder.embeddings(codes, view_kinds, 0)
        create_mask = create_causal_mask if is_causal else create_bidirectional_mask
        mask = create_mask(config=self.config, inputs_embeds=states, attention_mask=None, past_key_values=None)
        layers = encoder.stack.layers
        depth = len(layers) // self.config.local_stages

        def stage(number: int, states: torch.Tensor) -> torch.Tensor:
            for layer in layers[number * depth : (number + 1) * depth]:
                states = layer(states, mask, is_causal=is_causal)
            return states

        norms, poolers = [*self.norms, encoder.stack.norm], [*self.poolers, encoder.pooler]
        for i, projector in enumerate([*self.projectors, model.projector]):
            states = stage(i, states)
            seen = stage(i + 1, states) if self.config.local_overlap else states
            pooled = poolers[i](norms[i](seen)[:, 1:])
            yield pooled, projector(pooled)
            states = states.detach()


def with_known_gradient(value: torch.Tensor, parameters: list[nn.Parameter]) -> torch.Tensor:
    """
    A scalar whose gradient is found here, and not in the backward pass: all that was kept for it is let go. It reaches
    `parameters` alone.
    """
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    known = value.detach()
    for parameter, gradient in zip(parameters, found, strict=True):
        if gradient is not None:
            # Zero, with this gradient.
            known = known + ((parameter - parameter.detach()) * gradient).sum()
    return known
