"""What every contrastive objective takes and gives. One objective is one class in one file of this folder."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class ObjectiveBatch:
    """
    What an objective may need of a batch. Shape letters: V views, B samples of this process, D projection_dim.

    Args:
        projections: (V, B, D) rows of length one, fp32.
    """

    projections: torch.Tensor


class Objective(nn.Module):
    """
    Base class: hyperparameters go to the constructor, a batch goes to `forward`.

    Objectives import only torch and files of this folder, so that a checkpoint can carry the one it was trained with.
    """

    Batch = ObjectiveBatch

    def forward(self, batch: ObjectiveBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        Returns:
            the loss, a mean over the anchors of this process, and telemetry: detached scalars by name.

        Raises:
            ValueError: a batch on which the objective is not defined.
        """
        raise TypeError(f"{type(self).__name__} does not define forward().")


def alignment(projections: torch.Tensor) -> torch.Tensor:
    """
    Mean squared distance between the views of a sample (Wang and Isola 2020, arXiv 2005.10242): (V, B, D) -> ().
    """
    centred = projections - projections.mean(dim=0)
    num_views = len(projections)
    return 2 * num_views / (num_views - 1) * centred.square().sum(-1).mean()


def uniformity(projections: torch.Tensor) -> torch.Tensor:
    """
    log mean exp(-2 |x - y|^2) over pairs of different samples of a view (Wang and Isola 2020): (V, B, D) -> ().
    Zero when all rows are equal, lower when they spread.
    """
    batch_size = projections.shape[1]
    squared = 2 - 2 * projections @ projections.transpose(1, 2)
    squared = squared.masked_fill(torch.eye(batch_size, dtype=torch.bool, device=squared.device), torch.inf)
    num_pairs = len(projections) * batch_size * (batch_size - 1)
    return torch.logsumexp(-2 * squared.flatten(), dim=0) - torch.tensor(float(num_pairs)).log()
