"""InfoNCE whose negatives count less where clusterings put them with the anchor."""

import torch
from torch import nn
from transformers import initialization as init

from .base import ObjectiveBatch, positive
from .distributed import gather
from .weighted_info_nce import WeightedInfoNCE


class Meow(WeightedInfoNCE):
    """
    The weights of MEOW (Yu et al. 2022, arXiv 2212.13847) without its graphs and its prototypes: of R clusterings of
    the training images,

        w_ij = R - number of clusterings that have i and j in one cluster          # see WeightedInfoNCE

    Clusters are found by k-means on the last row of each image (the mean of its views), once an epoch; images that have
    not been seen before the last time, and images to evaluate on, have equal weights. AdaMEOW learns w by this very
    loss, whose gradient only ever makes it smaller, until all negatives are gone; that is left out.

    Args:
        num_samples: images of the training data.
        projection_dim: width of the rows.
        temperature: divides the similarities; must be positive.
        num_clusters: of each clustering.
        num_clusterings: R; they differ in the rows that they start from.
        num_iterations: of k-means.

    Raises:
        ValueError: an argument is out of its range; in `forward`, a sample id is (on the CPU only: elsewhere the check
            would wait for the device).
    """

    needs = frozenset({"projections", "sample_ids"})
    gradient_is_detached = True

    def __init__(
        self,
        num_samples: int,
        projection_dim: int,
        temperature: float = 0.2,
        num_clusters: int = 10,
        num_clusterings: int = 2,
        num_iterations: int = 10,
    ):
        super().__init__(temperature)
        self.num_clusters = positive("num_clusters", num_clusters)
        self.num_iterations = positive("num_iterations", num_iterations)
        positive("num_samples", num_samples)
        self.register_buffer("rows", torch.empty(num_samples, projection_dim))  # zeros: not seen yet
        # -1: in no cluster.
        shape = positive("num_clusterings", num_clusterings), num_samples
        self.register_buffer("clusters", torch.empty(shape, dtype=torch.long))
        self.register_buffer("num_seen", torch.empty((), dtype=torch.long))
        self.start_weights()

    def start_weights(self) -> None:
        init.zeros_(self.rows)
        init.constant_(self.clusters, -1)
        init.zeros_(self.num_seen)

    def weights(self, batch: ObjectiveBatch) -> torch.Tensor:
        num_clusterings, rows = len(self.clusters), batch.projections
        everyone = gather(rows, dim=1)
        if not self.training:
            return rows.new_ones(rows.shape[1], everyone.shape[1])
        clusters = self.clusters[:, batch.sample_ids, None]
        together = (clusters == self.clusters[:, None, gather(batch.sample_ids, dim=0)]) & (clusters >= 0)
        return (num_clusterings - together.sum(dim=0)).to(rows)

    # How many images have been seen decides what is done.
    @torch.compiler.disable
    def loss(self, batch: ObjectiveBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        ids = batch.sample_ids
        num_samples = len(self.rows)
        if self.training and ids.device.type == "cpu" and not (ids.min() >= 0 and ids.max() < num_samples):
            raise ValueError(
                f"sample_ids hold {ids.min()} to {ids.max()}, but there is state for num_samples={num_samples} images, "
                f"0 to {num_samples - 1}."
            )
        loss, telemetry = super().loss(batch)
        if self.training:
            self.remember(batch)
        return loss, telemetry

    @torch.no_grad()
    def remember(self, batch: ObjectiveBatch) -> None:
        """Keeps the rows of all processes, and finds clusters where an epoch has ended."""
        ids = gather(batch.sample_ids, dim=0)
        rows = nn.functional.normalize(gather(batch.projections, dim=1).mean(dim=0), dim=-1).to(self.rows)
        # A sample that is there twice gets the same row on every process.
        self.rows.scatter_reduce_(0, ids[:, None].expand_as(rows), rows, "mean", include_self=False)
        before = self.num_seen.item()
        self.num_seen += len(ids)
        epoch, num_samples = (before + len(ids)) // len(self.rows), len(self.rows)
        if epoch > before // num_samples:
            seen = self.rows.any(dim=1).nonzero()[:, 0]
            for i in range(len(self.clusters)):
                generator = torch.Generator().manual_seed(epoch * len(self.clusters) + i)
                found = kmeans(self.rows[seen], self.num_clusters, self.num_iterations, generator)
                self.clusters[i, seen] = found


def kmeans(rows: torch.Tensor, num_clusters: int, num_iterations: int, generator: torch.Generator) -> torch.Tensor:
    """
    Clusters (N,) of rows (N, D) of length one, by the cosine with their means, of which the first are rows that are
    drawn. A cluster that loses all its rows keeps its mean.
    """
    start = torch.randperm(len(rows), generator=generator)[:num_clusters].to(rows.device)
    means = rows[start]
    for _ in range(num_iterations):
        cluster = (rows @ means.T).argmax(dim=1)
        sums = torch.zeros_like(means).index_add(0, cluster, rows)
        is_left = sums.any(dim=1, keepdim=True)
        means = torch.where(is_left, nn.functional.normalize(sums, dim=1), means)
    return (rows @ means.T).argmax(dim=1)
