"""Contrastive representation distillation: each image finds its own row of the teacher."""

import torch
from torch import nn

from .base import positive
from .distillation import Distillation, linear
from .distributed import gather
from .log_sum_exp import masked_logsumexp


class Crd(Distillation):
    """
    CRD (Tian, Krishnan and Isola 2020, arXiv 1910.10699), with the batch for its memory bank: InfoNCE of the views, and
    `weight` times

        s_i = norm(A pooled_i), t_i = norm(C teacher_i)            # for each view; A and C are learnt
        distance = mean over i of (log sum_j exp(<s_i, t_j> / tau) + log sum_j exp(<s_j, t_i> / tau)) / 2
                                   - <s_i, t_i> / tau

    where j runs over the images of all processes, and tau is `teacher_temperature`. No gradient reaches the teacher.

    Args:
        projection_dim: width of the rows s and t; that of the model's.
        pooled_size: width of the pooled features; that of the model's.
        teacher_size: width of the teacher's features; the training code sets it.
        temperature: of InfoNCE; must be positive.
        teacher_temperature: tau; must be positive.
        weight: of the distance; not negative. In the paper .8 beside a cross entropy.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        projection_dim: int,
        pooled_size: int,
        teacher_size: int = 1,
        temperature: float = 0.2,
        teacher_temperature: float = 0.07,
        weight: float = 0.8,
    ):
        super().__init__(temperature, weight, teacher_size)
        self.teacher_temperature = positive("teacher_temperature", teacher_temperature)
        self.of_student = nn.Linear(positive("pooled_size", pooled_size), projection_dim, bias=False)
        self.of_teacher = nn.Linear(teacher_size, projection_dim, bias=False)

    def distance(self, pooled: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        parts = linear(self.of_student, pooled), linear(self.of_teacher, teacher)[None]
        rows = nn.functional.normalize(torch.cat(parts), dim=-1)
        everyone, last, scale = gather(rows, dim=1), len(pooled), 1 / self.teacher_temperature
        pairs = [pair for view in range(last) for pair in ((view, last), (last, view))]
        normaliser = torch.stack([masked_logsumexp(rows[a], everyone[b], scale) for a, b in pairs])
        return normaliser.mean() - scale * torch.linalg.vecdot(rows[:last], rows[last]).mean()
