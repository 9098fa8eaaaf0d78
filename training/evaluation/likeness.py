"""
How alike two sets of images are, given their features in one space.

Shape letters: N images, P width of a feature. Every function takes two sets of equal N, in double precision.
"""

import warnings

import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance


# Neighbours that decide how far the surroundings of an image reach.
NUM_NEIGHBOURS = 3
# Images whose kernel is held at a time.
SUBSET_SIZE = 1000


def likeness(real: torch.Tensor, generated: torch.Tensor) -> dict[str, float]:
    """
    Distances, 0 for equal distributions, and shares in [0, 1], all between features (N, P).

    `precision` is the share of generated images that lie where real ones do, `recall` the share of real images that
    lie where generated ones do.
    """
    return {
        "frechet_distance": frechet_distance(real, generated),
        "kernel_distance": kernel_distance(real, generated),
        "precision": share_within(real, generated),
        "recall": share_within(generated, real),
    }


def frechet_distance(real: torch.Tensor, generated: torch.Tensor) -> float:
    """Between Gaussians of the means and covariances of the sets (Heusel et al. 2017, arXiv 1706.08500)."""
    return _compute(FrechetInceptionDistance(nn.Identity(), input_img_size=real.shape[1:]), real, generated).item()


def kernel_distance(real: torch.Tensor, generated: torch.Tensor) -> float:
    """
    Squared maximum mean discrepancy under the kernel (x . y / P + 1)^3, without bias, so it can be a little negative.

    Of all images at once, or the mean over random subsets of a thousand (Binkowski et al. 2018, arXiv 1801.01401).
    """
    num_subsets = -(-len(real) // SUBSET_SIZE)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.filterwarnings("ignore", ".*will save all extracted features in buffer")
        torch.manual_seed(0)
        metric = KernelInceptionDistance(nn.Identity(), num_subsets, min(len(real), SUBSET_SIZE))
        return _compute(metric, real, generated)[0].item()


def _compute(metric, real: torch.Tensor, generated: torch.Tensor):
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return metric.compute()


def share_within(support: torch.Tensor, images: torch.Tensor) -> float:
    """
    Share of `images` that are no farther from some image of `support` than its third nearest neighbour in `support`.

    Kynkaanniemi et al. 2019, arXiv 1904.06991.
    """
    # Exact differences: by products, an image would not be at distance 0 from itself.
    exact = "donot_use_mm_for_euclid_dist"
    # The nearest of all is the image itself.
    reach = torch.cdist(support, support, compute_mode=exact).kthvalue(NUM_NEIGHBOURS + 1).values
    return (torch.cdist(images, support, compute_mode=exact) <= reach).any(1).double().mean().item()
