"""InfoNCE without false negatives, which the labels tell: the most that weights of negatives can give."""

import torch

from .base import ObjectiveBatch
from .distributed import gather
from .weighted_info_nce import WeightedInfoNCE


class TrueNegatives(WeightedInfoNCE):
    """
    Samples of one class are no negatives of each other; nor are they positives, as they are in SupCon. What guesses
    false negatives without labels (`meow`) can at best do the same: if this brings nothing on a set, that cannot.

        w_ij = weight where i and j are of one label, else 1       # see WeightedInfoNCE

    Args:
        temperature: divides the similarities; must be positive.
        weight: of negatives of the same class; 0 leaves them out, 1 is the loss without labels. Not negative.

    Raises:
        ValueError: an argument is out of its range.
    """

    needs = frozenset({"projections", "labels"})

    def __init__(self, temperature: float = 0.2, weight: float = 0.0):
        super().__init__(temperature)
        if not weight >= 0:
            raise ValueError(f"weight={weight} must not be negative.")
        self.weight = weight

    def weights(self, batch: ObjectiveBatch) -> torch.Tensor:
        is_same = batch.labels[:, None] == gather(batch.labels, dim=0)
        return torch.where(is_same, self.weight, 1.0).to(batch.projections.dtype)
