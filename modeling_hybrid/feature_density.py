"""
Which features do images have? Features that are drawn first make images without any given, in two stages.

Representation-conditioned generation (RCG, Li et al. 2023, arXiv 2312.03701), with a mixture of Gaussians in place of
the paper's diffusion model of the representations.

Shape letters: N images, P width of the pooled feature, M Gaussians.
"""

import torch
from torch import nn
from transformers import initialization as init

from .strangeness import ledoit_wolf


# More of them change nothing that could be seen.
NUM_ITERATIONS = 20


class FeatureDensity(nn.Module):
    """
    A mixture of M Gaussians that share one covariance: their means are those of k-means clusters, their shares the
    sizes of these, and the covariance is that of the features around their means, shrunk ([`ledoit_wolf`]). With M = 1
    it is the shrunk Gaussian of all features.

    Attributes:
        means: (M, P).
        shares: (M,), which sum to one; to zero before `fit`.
        spread: (P, P), which times its transpose is the covariance.
    """

    def __init__(self, feature_size: int, num_components: int):
        super().__init__()
        self.register_buffer("means", torch.empty(num_components, feature_size))
        self.register_buffer("shares", torch.empty(num_components))
        self.register_buffer("spread", torch.empty(feature_size, feature_size))
        self.start_weights()

    def start_weights(self) -> None:
        for buffer in self.buffers():
            init.zeros_(buffer)

    @torch.no_grad()
    def fit(self, features: torch.Tensor) -> "FeatureDensity":
        """
        Args:
            features: (N, P) of images of the data. The same features give the same density.

        Raises:
            ValueError: fewer than two images for each Gaussian, or features that are not finite.
        """
        num_components = len(self.shares)
        if len(features) < 2 * num_components:
            raise ValueError(
                f"There are {len(features)} images, expected {2 * num_components} or more, two for each of "
                f"num_components={num_components}; pass more images, or fewer components."
            )
        if not features.isfinite().all():
            raise ValueError("The features hold values that are infinite or not a number.")
        # On the CPU, as not every accelerator has fp64.
        features = features.to("cpu", torch.float64)
        means, nearest = k_means(features, num_components)
        _, covariance = ledoit_wolf(features - means[nearest])
        variances, directions = torch.linalg.eigh(covariance)
        self.means.copy_(means)
        self.shares.copy_(nearest.bincount(minlength=num_components) / len(features))
        self.spread.copy_(directions * variances.clamp(min=0).sqrt())
        return self

    @torch.no_grad()
    def sample(self, num_images: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """
        Features (N, P), in fp32 at least.

        Raises:
            ValueError: not fitted.
        """
        if not self.shares.any():
            raise ValueError(NOT_FITTED)
        shares = self.shares.float()
        component = torch.multinomial(shares, num_images, replacement=True, generator=generator)
        noise = torch.randn(num_images, self.means.shape[1], generator=generator, device=shares.device)
        return self.means.float()[component] + noise @ self.spread.float().T


NOT_FITTED = (
    "There is no density of the features to draw from yet; call fit_feature_density() with images of the data, or load "
    "a checkpoint that was saved after it."
)


def k_means(features: torch.Tensor, num_clusters: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means (M, P) of clusters of the rows (N, P), and the cluster of each row, (N,); the same ones at every call."""
    generator = torch.Generator().manual_seed(0)
    # k-means++ (Arthur and Vassilvitskii 2007): each further start is a row, as likely as it is far from those before.
    means = features[torch.randint(len(features), (1,), generator=generator)]
    while len(means) < num_clusters:
        distances = torch.cdist(features, means).amin(dim=1).square()
        # Where all rows are starts already, any of them.
        chosen = torch.multinomial(distances + torch.finfo(distances.dtype).tiny, 1, generator=generator)
        means = torch.cat([means, features[chosen]])
    for _ in range(NUM_ITERATIONS):
        nearest = torch.cdist(features, means).argmin(dim=1)
        sums = torch.zeros_like(means).index_add_(0, nearest, features)
        sizes = nearest.bincount(minlength=num_clusters)[:, None]
        # A cluster that has lost its last row stays where it is, with a share of 0.
        means = torch.where(sizes > 0, sums / sizes.clamp(min=1), means)
    return means, torch.cdist(features, means).argmin(dim=1)
