"""InfoNCE over the views of a batch."""

import torch

from .base import CLEAN, LOCAL, Objective, ObjectiveBatch, positive
from .log_sum_exp import masked_logsumexp
from .rows import all_rows


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

    Of the same paper: a temperature for each kind of view, here for anchors that are not clean, and a weight of local
    pairs: an (anchor, positive) pair counts `local_weight` times for each of the two that is a local view.

    Args:
        temperature: divides the similarities; must be positive.
        label_smoothing: e, in [0, 1).
        augmented_temperature: of augmented and local anchors; `temperature` if unset.
        local_weight: 0 or more.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        temperature: float = 0.2,
        label_smoothing: float = 0.0,
        augmented_temperature: float | None = None,
        local_weight: float = 1.0,
    ):
        super().__init__()
        self.temperature = positive("temperature", temperature)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must be in [0, 1).")
        self.label_smoothing = label_smoothing
        self.augmented_temperature = positive("augmented_temperature", augmented_temperature or temperature)
        if local_weight < 0:
            raise ValueError(f"local_weight={local_weight} must be 0 or more.")
        self.local_weight = local_weight

    def loss(self, batch: ObjectiveBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        rows = batch.projections
        candidates, places = all_rows(rows)
        kinds = rows.new_full((len(rows),), CLEAN) if batch.view_kinds is None else batch.view_kinds.to(rows.device)
        temperatures = torch.where(kinds == CLEAN, self.temperature, self.augmented_temperature)
        scaled = rows / temperatures[:, None, None].to(rows)
        anchors = scaled.flatten(0, 1)
        normaliser = masked_logsumexp(anchors, candidates, 1.0, left_out=places[:, :1])
        similarities = torch.einsum("abd,pbd->apb", scaled, rows)  # of anchors to positives
        if self.label_smoothing > 0:
            # The mean over all candidates is the similarity to their mean row.
            itself = torch.linalg.vecdot(anchors, rows.flatten(0, 1))
            others = (anchors @ candidates.sum(dim=0) - itself) / (len(candidates) - 1)
            similarities = similarities.lerp(others.view(len(rows), 1, -1), self.label_smoothing)
        weights = torch.where(kinds == LOCAL, self.local_weight, 1.0).to(rows)
        weights = (weights[:, None] * weights).fill_diagonal_(0)
        losses = normaliser.view(len(rows), 1, -1) - similarities
        return (weights / weights.sum() * losses.mean(dim=2)).sum(), {}
