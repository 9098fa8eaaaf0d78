"""InfoNCE over the views of a batch."""

import torch

from .base import Objective, ObjectiveBatch, positive
from .log_sum_exp import masked_logsumexp
from .rows import all_rows, mean_positive_similarity


class InfoNCE(Objective):
    """
    InfoNCE in the NT-Xent form of SimCLR (Chen et al. 2020, arXiv 2002.05709, eq. 1), averaged over anchors.

    Every row is an anchor; its positives are the other views of its sample, its candidates all rows but itself:

        for each anchor i:                                         # V * B rows, unit length
            for each positive p of i:
                loss += log sum_{a != i} exp(<z_i, z_a> / t) - <z_i, z_p> / t
        loss /= number of (anchor, positive) pairs

    With two views this is NT-Xent. With more, the other positives stay among the candidates, as in SupCon (Khosla et
    al. 2020, arXiv 2004.11362, eq. 2). Memory does not grow with the square of the batch.

    With `label_smoothing` e (Fini et al. 2023, arXiv 2305.08675, who smooth augmented pairs), the target of an anchor
    is its positives with 1 - e, and all candidates alike with e:

        loss += log sum_{a != i} exp(<z_i, z_a> / t) - (1 - e) <z_i, z_p> / t - e mean_{a != i} <z_i, z_a> / t

    Args:
        temperature: divides the similarities; must be positive.
        label_smoothing: e, in [0, 1).

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, temperature: float = 0.2, label_smoothing: float = 0.0):
        super().__init__()
        self.temperature = positive("temperature", temperature)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must be in [0, 1).")
        self.label_smoothing = label_smoothing

    def loss(self, batch: ObjectiveBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        candidates, places = all_rows(batch.projections)
        anchors = batch.projections.flatten(0, 1)
        normaliser = masked_logsumexp(anchors, candidates, 1 / self.temperature, left_out=places[:, :1])
        target = mean_positive_similarity(batch.projections)
        if self.label_smoothing > 0:
            # The mean over all candidates is the similarity to their mean row.
            others = (anchors @ candidates.sum(dim=0) - torch.linalg.vecdot(anchors, anchors)) / (len(candidates) - 1)
            target = target.lerp(others, self.label_smoothing)
        return (normaliser - target / self.temperature).mean(), {}
