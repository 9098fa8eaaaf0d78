"""Feature regression: what is learnt predicts the features of a teacher."""

import torch
from torch import nn

from .base import positive
from .distillation import Distillation, linear


class FeatureRegression(Distillation):
    """
    The hint of FitNets (Romero et al. 2015, arXiv 1412.6550) on pooled features, the plain control of `crd`: InfoNCE of
    the views, and `weight` times

        distance = mean over views, images and columns of (A pooled_i + b - teacher_i)^2

    Args:
        pooled_size: width of the pooled features; that of the model's.
        teacher_size: width of the teacher's features; the training code sets it.
        temperature: of InfoNCE; must be positive.
        weight: of the distance; not negative.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, pooled_size: int, teacher_size: int = 1, temperature: float = 0.2, weight: float = 0.8):
        super().__init__(temperature, weight, teacher_size)
        self.of_student = nn.Linear(positive("pooled_size", pooled_size), teacher_size)

    def distance(self, pooled: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return (linear(self.of_student, pooled) - teacher).square().mean()
