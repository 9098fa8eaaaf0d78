"""InfoNCE whose negatives have weights: what MEOW and DebCSE share."""

from collections.abc import Sequence
from itertools import permutations

import torch

from .base import Objective, ObjectiveBatch, positive
from .distributed import gather, own_samples
from .log_sum_exp import masked_logsumexp


def weighted_info_nce(projections: torch.Tensor, temperature: float, log_weights: torch.Tensor) -> torch.Tensor:
    """
    For each ordered pair of views (a, b) and each sample i,

        log sum_j w_ij exp(<a_i, b_j> / t) - <a_i, b_i> / t        # j over the samples of all processes

    averaged over pairs and samples. w = 1 is InfoNCE; w_ii = 0 and else 1, DCL; candidates are of the other view alone.
    Where all w_ij are zero, the first term is.

    Args:
        projections: (V, B, D) rows of length one.
        temperature: t.
        log_weights: (B, G) or (V, V, B, G) ln w, without gradient.
    """
    candidates = gather(projections, dim=1)
    log_weights = log_weights.expand(len(projections), len(projections), -1, -1)
    losses = [
        masked_logsumexp(projections[a], candidates[b], 1 / temperature, log_weights=log_weights[a, b])
        - torch.linalg.vecdot(projections[a], projections[b]) / temperature
        for a, b in permutations(range(len(projections)), 2)
    ]
    return torch.stack(losses).mean()


class WeightedInfoNCE(Objective):
    """
    [`weighted_info_nce`] with the weights that a subclass gives; own samples have none (as in DCL), and those of the
    others are brought to mean one, so that only their ratios count.

    Args:
        temperature: divides the similarities; must be positive.

    Raises:
        ValueError: `temperature` is not positive.
    """

    def __init__(self, temperature: float = 0.2):
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def counts(self, view_kinds: Sequence[int], num_samples: int) -> tuple[int, int]:
        return len(view_kinds) - 1, (len(view_kinds) - 1) * (num_samples - 1)

    def weights(self, batch: ObjectiveBatch) -> torch.Tensor:
        """Weights (B, G) or (V, V, B, G) of the samples of all processes, not negative; own samples may have any."""
        raise TypeError(f"{type(self).__name__} does not define weights().")

    def loss(self, batch: ObjectiveBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with torch.no_grad():
            weights = self.weights(batch)
            itself = own_samples(weights.shape[-2], weights.device)[:, None].expand(*weights.shape[:-1], 1)
            weights = weights.to(batch.projections).scatter(-1, itself, 0.0)
            mean = weights.sum(dim=-1, keepdim=True) / (weights.shape[-1] - 1)
            log_weights = (weights / mean.where(mean > 0, 1)).log()
        loss = weighted_info_nce(batch.projections, self.temperature, log_weights)
        return loss, {"left_out_share": (weights == 0).to(loss.dtype).mean()}
