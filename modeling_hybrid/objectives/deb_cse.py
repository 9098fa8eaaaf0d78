"""InfoNCE whose negatives are weighted by how alike the images look, before any learning."""

import torch
from torch import nn

from .base import ObjectiveBatch, positive
from .distributed import gather
from .weighted_info_nce import WeightedInfoNCE


class DebCSE(WeightedInfoNCE):
    """
    Inverse propensity weights, after DebCSE (Miao, Du and Zhang 2023, arXiv 2309.07396), of which we have read the
    abstract alone: the formula is ours. What looks alike is drawn as a negative too easily, and counts less:

        u_ij = cosine of the blurred pixels of view a of i and view b of j, each centred
        pi_i = softmax over j of u_ij / width                      # over the samples of all processes, G
        w_ij = clip((G * pi_ij) ** power, 1 / bound, bound)        # see WeightedInfoNCE
        w_ij = 0 where <a_i, b_j> > too_similar

    Args:
        temperature: divides the similarities of rows; must be positive.
        width: divides the similarities of pixels; must be positive.
        power: -1 gives what looks alike less weight, 1 more, 0 all the same.
        bound: the largest weight, and one over the smallest; must be at least 1.
        too_similar: rows more similar than this are no negatives of each other.

    Raises:
        ValueError: an argument is out of its range.
    """

    needs = frozenset({"projections", "pixel_values"})
    gradient_is_detached = True

    def __init__(
        self,
        temperature: float = 0.2,
        width: float = 0.1,
        power: float = -1.0,
        bound: float = 10.0,
        too_similar: float = 0.9,
    ):
        super().__init__(temperature)
        self.width = positive("width", width)
        if not bound >= 1:
            raise ValueError(f"bound={bound} must be at least 1.")
        self.power, self.bound, self.too_similar = power, bound, too_similar

    def weights(self, batch: ObjectiveBatch) -> torch.Tensor:
        looks = centred(batch.pixel_values)
        alike = torch.einsum("aip,bjp->abij", looks, gather(looks, dim=1))
        num_samples = alike.shape[-1]
        log_ratio = (alike / self.width).log_softmax(dim=-1) + torch.tensor(num_samples).log()
        weights = (self.power * log_ratio).exp().clamp(1 / self.bound, self.bound)
        rows = batch.projections
        similarity = torch.einsum("aid,bjd->abij", rows, gather(rows, dim=1))
        return weights.masked_fill(similarity > self.too_similar, 0)


def centred(pixel_values: torch.Tensor) -> torch.Tensor:
    """Pixels (V, B, C, H, W) -> the same blurred, around their mean, and of length one: (V, B, C * H * W)."""
    blurred = nn.functional.avg_pool2d(pixel_values.flatten(0, 1), 3, stride=1, padding=1, count_include_pad=False)
    looks = blurred.unflatten(0, pixel_values.shape[:2]).flatten(2)
    return nn.functional.normalize(looks - looks.mean(dim=-1, keepdim=True), dim=-1)
