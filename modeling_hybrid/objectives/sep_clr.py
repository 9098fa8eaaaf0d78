"""SepCLR: what all images share in one code, what only some have in another."""

import math

import torch
from torch import nn
from transformers import initialization as init

from .base import Objective, ObjectiveBatch, positive
from .distributed import gather
from .telemetry import alignment


class SepCLR(Objective):
    """
    SepCLR with the k-JEM bound (Louiset et al. 2024, arXiv 2402.11928). One class is the background (the healthy, say),
    all others are targets, which have something more. Two linear heads on the projections give each row a common code
    c, of length one, and a salient code s; s' is s of targets, and 0 of the background:

        k(u, v) = exp(-|u - v|^2)
        align(u) = mean over pairs of views of a sample of |u_a - u_b|^2
        uniform(u) = log mean over pairs i < j of samples of k(u_i, u_j), averaged over views
        loss = align(c) + 2 uniform(c)
             + salient_weight * (align(s, of targets) + 2 uniform(s'))
             + background_weight * mean over the background of |s|^2
             + joint_weight * mean_i log mean_j k(c_i, c_j) k(s'_i, s'_j)      # per view, j = i among them

    The last term is minus an estimate of the joint entropy, which keeps the two codes from telling the same. The
    authors' heads read the encoder; here they read the projections, so that the projector is their first layers.
    `common(projections)` and `salient(projections)` are what to evaluate.

    Args:
        projection_dim: width of the rows.
        background: the label of the background.
        code_size: width of each code.
        salient_weight, background_weight, joint_weight: not negative; the defaults are the authors' on CIFAR-MNIST.

    Raises:
        ValueError: an argument is out of its range.
    """

    needs = frozenset({"projections", "labels"})

    def __init__(
        self,
        projection_dim: int,
        background: int = 0,
        code_size: int = 32,
        salient_weight: float = 1000.0,
        background_weight: float = 1000.0,
        joint_weight: float = 10.0,
    ):
        super().__init__()
        weights = {"salient": salient_weight, "background": background_weight, "joint": joint_weight}
        for name, weight in weights.items():
            if not weight >= 0:
                raise ValueError(f"{name}_weight={weight} must not be negative.")
        self.background, self.weights = background, weights
        self.common_head = nn.Parameter(torch.empty(positive("code_size", code_size), projection_dim))
        self.salient_head = nn.Parameter(torch.empty(code_size, projection_dim))
        self.start_weights()

    def start_weights(self) -> None:
        for head in (self.common_head, self.salient_head):
            init.orthogonal_(head)

    def common(self, projections: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., code_size) of length one."""
        return nn.functional.normalize(projections @ self.common_head.to(projections).T, dim=-1)

    def salient(self, projections: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., code_size)."""
        return projections @ self.salient_head.to(projections).T

    def counts(self, view_kinds, num_samples):
        return len(view_kinds) - 1, num_samples - 1

    def loss(self, batch: ObjectiveBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        everyone = gather(batch.projections, dim=1)
        is_target = (gather(batch.labels, dim=0) != self.background)[:, None]
        common, salient = self.common(everyone), self.salient(everyone)
        kept = salient * is_target  # s', whose background is at 0
        common_squares, kept_squares = squared_distances(common), squared_distances(kept)

        shared = alignment(common) + 2 * uniformity(common_squares)
        # Of all samples s' is aligned where s of targets is: the others add 0.
        num_targets = is_target.sum()
        aligned = alignment(kept) * len(is_target) / num_targets.clamp(min=1)
        own = aligned + 2 * uniformity(kept_squares)
        num_background = (len(is_target) - num_targets).clamp(min=1)
        leaked = ((salient * ~is_target).square().sum(dim=-1).mean(dim=0).sum()) / num_background
        joint = (-common_squares - kept_squares).logsumexp(dim=2).mean() - math.log(len(is_target))

        loss = shared + self.weights["salient"] * own + self.weights["background"] * leaked
        terms = {"common_loss": shared, "salient_loss": own, "background_loss": leaked, "joint_loss": joint}
        return loss + self.weights["joint"] * joint, {name: term.detach() for name, term in terms.items()}


def squared_distances(codes: torch.Tensor) -> torch.Tensor:
    """Between the samples of each view: (V, B, D) -> (V, B, B)."""
    # Not the distances, whose gradient at 0 is none.
    squares = codes.square().sum(dim=-1)
    found = squares[:, :, None] + squares[:, None] - 2 * codes @ codes.transpose(1, 2)
    return found.clamp(min=0)


def uniformity(squares: torch.Tensor) -> torch.Tensor:
    """The logarithm of the mean k over pairs of different samples of (V, B, B), averaged over views."""
    num_samples = squares.shape[1]
    itself = torch.eye(num_samples, dtype=torch.bool, device=squares.device)
    similar = (-squares).masked_fill(itself, -torch.inf).flatten(1).logsumexp(dim=1)
    return similar.mean() - math.log(num_samples * (num_samples - 1))
