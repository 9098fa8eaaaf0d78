"""DEMI: what a small crop tells of another view, and what the whole view tells beyond it."""

import math

import torch

from .base import LOCAL, Objective, ObjectiveBatch, positive
from .distributed import gather, own_samples
from .log_sum_exp import masked_logsumexp


class Demi(Objective):
    """
    Decomposed mutual information (Sordoni et al. 2021, arXiv 2106.13401) in its importance-sampling form, our reading.

    With x' a part of x, I(x; y) >= I(x'; y) + I(x; y | x'), and each term has a bound of InfoNCE:

        for each sample i of K:
            loss += log sum_j exp(<x'_i, y_j> / t) - <x'_i, y_i> / t
            w = softmax over j != i of  <x'_i, y_j> / t            # negatives that look like y given x'
            e_j = exp(<x_i, y_j> / t)
            loss += log(e_i + (K - 1) * sum_{j != i} w_j e_j) - log e_i

    without gradient through w. The first local view is x'; the first two others are x and y.

    Args:
        temperature: t, divides the similarities; must be positive.

    Raises:
        ValueError: `temperature` is not positive.
    """

    needs = frozenset({"projections", "view_kinds"})
    min_views = 3
    gradient_is_detached = True

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def check_views(self, view_kinds, num_samples):
        super().check_views(view_kinds, num_samples)
        num_local = sum(kind == LOCAL for kind in view_kinds)
        num_others = len(view_kinds) - num_local
        if num_local < 1 or num_others < 2:
            raise ValueError(
                f"Demi needs at least one local view and two others, not {num_local} local view(s) and "
                f"{num_others} other(s)."
            )

    def counts(self, view_kinds, num_samples):
        return 1, num_samples - 1

    def loss(self, batch: ObjectiveBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        part = batch.projections[batch.view_kinds == LOCAL][0]
        whole, target = batch.projections[batch.view_kinds != LOCAL][:2]
        targets = gather(target, dim=0)
        num_samples = len(targets)

        positive_similarity = torch.linalg.vecdot(part + whole, target) / self.temperature
        from_part = masked_logsumexp(part, targets, 1 / self.temperature)

        with torch.no_grad():
            itself = own_samples(len(part), part.device)[:, None]
            log_weights = (part @ targets.T / self.temperature).scatter(1, itself, -torch.inf).log_softmax(dim=1)
            # The weight of the positive, which stands beside (K - 1) times the mean of the negatives, is one.
            log_weights = (log_weights + math.log(num_samples - 1)).scatter(1, itself, 0.0)
        beyond_part = (whole @ targets.T / self.temperature + log_weights).logsumexp(dim=1)
        return (from_part + beyond_part - positive_similarity).mean(), {}
