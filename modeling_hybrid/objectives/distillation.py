"""InfoNCE beside a comparison with the features of a teacher: what CRD and the regression of features share."""

import torch
from torch import nn

from .base import ObjectiveBatch, positive
from .info_nce import InfoNCE


class Distillation(InfoNCE):
    """
    InfoNCE of the views, and `weight` times the distance of their pooled features from those of a frozen teacher, which
    a subclass defines. Where nobody has asked the teacher, as in an evaluation, it is InfoNCE alone.

    Args:
        temperature: of InfoNCE; must be positive.
        weight: of the distance; not negative.
        teacher_size: T, width of the teacher's features.

    Raises:
        ValueError: an argument is out of its range, or the features of the teacher have another width.
    """

    needs = frozenset({"projections", "pooled", "teacher"})

    def __init__(self, temperature: float, weight: float, teacher_size: int):
        super().__init__(temperature)
        if not weight >= 0:
            raise ValueError(f"weight={weight} must not be negative.")
        self.weight, self.teacher_size = weight, positive("teacher_size", teacher_size)

    def distance(self, pooled: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Of features (V, B, P) from the teacher's of the same images (B, T): the mean over views and images."""
        raise TypeError(f"{type(self).__name__} does not define distance().")

    def loss(self, batch: ObjectiveBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, telemetry = super().loss(batch)
        if batch.teacher is None:
            return loss, telemetry
        if batch.teacher.shape[-1] != self.teacher_size:
            raise ValueError(
                f"The teacher's features are {batch.teacher.shape[-1]} wide, but teacher_size={self.teacher_size}; "
                "leave it out, and the training sets it."
            )
        distance = self.distance(batch.pooled, batch.teacher.detach().to(batch.pooled))
        return loss + self.weight * distance, telemetry | {"distance_from_teacher": distance.detach()}


def linear(layer: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    """The layer on rows (..., P), in their precision."""
    bias = None if layer.bias is None else layer.bias.to(rows.dtype)
    return nn.functional.linear(rows, layer.weight.to(rows.dtype), bias)
